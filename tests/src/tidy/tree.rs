//! The text files of the repository, read once for all checks.

use std::io;
use std::path::{Path, PathBuf};

/// Entries that hold nothing the project wrote; `.git` is a file in a linked work tree.
const SKIPPED: &[&str] = &[".git", "target", "node_modules", "corpus", "artifacts"];

/// One file of the tree that is valid UTF-8.
#[derive(Debug, Clone)]
pub struct TextFile {
    /// Relative to the root, with `/` between the parts.
    pub path: String,
    /// The whole content.
    pub text: String,
}

impl TextFile {
    /// A file that exists in memory only.
    pub fn new(path: &str, text: &str) -> Self {
        TextFile { path: path.into(), text: text.into() }
    }

    /// Whether the name ends in `.extension`.
    pub fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }
}

/// Reads every text file under `root`, sorted by path. Links and files that are not UTF-8 are left out.
pub fn read_tree(root: &Path) -> io::Result<Vec<TextFile>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                continue;
            }
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file()
                && let Ok(text) = String::from_utf8(std::fs::read(entry.path())?)
            {
                files.push(TextFile { path: relative(root, entry.path()), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn relative(root: &Path, path: PathBuf) -> String {
    path.strip_prefix(root).expect("the walk stays under its root").to_string_lossy().into_owned()
}
