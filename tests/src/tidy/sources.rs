//! The shape of Rust files: each opens with its module doc, and a long one says why.

use super::TextFile;

/// Above this a file gives its reason.
const LONG_LINES: usize = 500;

/// How a file gives it.
const REASON: &str = "// Long because: ";

/// Module names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "manager", "types", "misc", "common"];

/// One complaint per file and rule.
pub fn check_sources(files: &[TextFile]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.has_extension("rs")) {
        if !opens_with_doc(&file.text) {
            complaints.push(format!("{}: has no module doc (`//!`) at its head", file.path));
        }
        let lines = file.text.lines().count();
        let reason = file.text.lines().any(|line| line.len() > REASON.len() + 10 && line.starts_with(REASON));
        if lines > LONG_LINES && !reason {
            complaints.push(format!("{}: {lines} lines; split it or add '{REASON}...'", file.path));
        }
        let name = file.path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).unwrap_or_default();
        if EMPTY_NAMES.contains(&name) {
            complaints.push(format!("{}: name it after what it holds", file.path));
        }
    }
    complaints
}

/// Attributes for the whole file and plain comments may stand above the doc.
fn opens_with_doc(text: &str) -> bool {
    let above = |line: &&str| line.is_empty() || line.starts_with("#!") || is_plain_comment(line);
    text.lines().map(str::trim).find(|line| !above(line)).is_some_and(|line| line.starts_with("//!"))
}

fn is_plain_comment(line: &str) -> bool {
    line.starts_with("//") && !line.starts_with("///") && !line.starts_with("//!")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        check_sources(&[TextFile::new(path, text)])
    }

    #[test]
    fn takes_documented_files() {
        assert_eq!(complaints("a/b.rs", "//! Purpose.\nfn f() {}\n"), [""; 0]);
        assert_eq!(complaints("a/b.rs", "#![allow(x)]\n\n// note\n//! Purpose.\n"), [""; 0]);
        assert_eq!(complaints("a/b.md", "no code"), [""; 0]);
    }

    #[test]
    fn refuses_undocumented_long_and_nameless_files() {
        assert!(complaints("a/b.rs", "use x;\n//! late\n")[0].contains("no module doc"));
        assert!(complaints("a/b.rs", "/// item\nfn f() {}\n")[0].contains("no module doc"));
        assert!(complaints("a/b.rs", "")[0].contains("no module doc"));
        assert!(complaints("a/utils.rs", "//! Purpose.\n")[0].contains("name it after"));
        let long = format!("//! Purpose.\n{}", "\n".repeat(LONG_LINES));
        assert!(complaints("a/b.rs", &long)[0].contains("501 lines"));
        assert!(complaints("a/b.rs", &format!("{long}{REASON}\n"))[0].contains("502 lines"));
        assert_eq!(
            complaints("a/b.rs", &format!("{REASON}one table, one match per state.\n{long}")),
            [""; 0]
        );
    }
}
