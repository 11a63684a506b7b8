//! A node's directory: [`DataDir`] holds it alone and writes, [`DataDirView`] only reads.
//!
//! A file is replaced as a whole: written beside its place, synced, renamed, the directory synced. Whoever
//! reads sees the old content or the new, also after a power loss.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process works in it.
    #[error(
        "data directory {} is in use by process {}: stop that process or choose another --data",
        path.display(), holder.map_or_else(|| "(unknown)".into(), |pid| pid.to_string())
    )]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// Who holds it, when its lock file says so.
        holder: Option<u32>,
    },
    /// There is no such directory.
    #[error("data directory {} does not exist: give the --data of a node that has been started", path.display())]
    Missing {
        /// Which directory.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { action, path, source }
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// The owner alone, 0600: keys, tokens, state.
    Private,
    /// Everybody who gets into the directory, 0644: certificates.
    Public,
}

/// A data directory to read from; needs no lock, so that the command line works beside a running node.
#[derive(Debug, Clone)]
pub struct DataDirView {
    path: PathBuf,
}

impl DataDirView {
    /// Looks into an existing directory.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        if path.is_dir() { Ok(DataDirView { path }) } else { Err(DataDirError::Missing { path }) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of a file, `None` when there is no such file.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DataDirError> {
        let path = self.join(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }
}

/// A data directory held by this process alone until dropped or killed.
#[derive(Debug)]
pub struct DataDir {
    view: DataDirView,
    _lock: File,
}

impl DataDir {
    const LOCK: &'static str = "lock";

    /// Creates the directory if needed (0700) and takes its lock. An existing directory keeps its mode: the
    /// secrets in it are private by their own.
    ///
    /// # Errors
    /// When another process holds it, or the file system refuses.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(io_error("create data directory", &path))?;
        let lock_path = path.join(Self::LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // The content names the holder as long as we are not it.
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&mut lock).take(32).read_to_string(&mut text);
                return Err(DataDirError::InUse { path, holder: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &lock_path)(e)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(io_error("write", &lock_path))?;
        Ok(DataDir { view: DataDirView { path }, _lock: lock })
    }

    /// The same directory to read from.
    pub fn view(&self) -> &DataDirView {
        &self.view
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.view.path()
    }

    /// Replaces a file as a whole, durably.
    ///
    /// # Errors
    /// When the file system refuses; the old content is then still there.
    pub fn write(&self, name: &str, content: &[u8], mode: FileMode) -> Result<(), DataDirError> {
        let path = self.view.join(name);
        // One name is enough: the lock makes this process the only writer. A left-over is of a crash.
        let staged = self.view.join(&format!(".{name}.new"));
        match fs::remove_file(&staged) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &staged)(e)),
            _ => {}
        }
        let bits = match mode {
            FileMode::Private => 0o600,
            FileMode::Public => 0o644,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(bits)
            .open(&staged)
            .map_err(io_error("create", &staged))?;
        file.write_all(content).map_err(io_error("write", &staged))?;
        file.sync_all().map_err(io_error("sync", &staged))?;
        fs::rename(&staged, &path).map_err(io_error("replace", &path))?;
        self.sync()
    }

    /// Removes a file, durably; one that is not there is no error.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self, name: &str) -> Result<(), DataDirError> {
        let path = self.view.join(name);
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error("remove", &path)(e)),
        }
    }

    fn sync(&self) -> Result<(), DataDirError> {
        let path = self.path();
        File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync directory", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn creates_it_private_and_refuses_a_second_holder_by_name() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("deep/er");
        let held = DataDir::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);

        let refused = DataDir::open(&path).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");

        drop(held);
        DataDir::open(&path).expect("free again");
    }

    #[test]
    fn writes_whole_files_with_their_mode() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        assert_eq!(dir.view().read("a").unwrap(), None);
        dir.write("a", b"one", FileMode::Private).unwrap();
        dir.write("b", b"two", FileMode::Public).unwrap();
        assert_eq!(dir.view().read("a").unwrap().unwrap(), b"one");
        assert_eq!(mode(&dir.view().join("a")), 0o600);
        assert_eq!(mode(&dir.view().join("b")), 0o644);
        dir.remove("a").unwrap();
        dir.remove("a").unwrap();
        assert_eq!(dir.view().read("a").unwrap(), None);
    }

    #[test]
    fn a_crash_between_writing_and_renaming_changes_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        dir.write("a", b"old", FileMode::Private).unwrap();
        // What a crash leaves: half a file beside its place, readable by all.
        fs::write(dir.view().join(".a.new"), b"ne").unwrap();
        assert_eq!(dir.view().read("a").unwrap().unwrap(), b"old");
        dir.write("a", b"new", FileMode::Private).unwrap();
        assert_eq!(dir.view().read("a").unwrap().unwrap(), b"new");
        assert_eq!(mode(&dir.view().join("a")), 0o600);
        assert!(!dir.view().join(".a.new").exists());
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        dir.write("a", b"old", FileMode::Private).unwrap();
        fs::create_dir(dir.view().join(".a.new")).unwrap();
        assert!(dir.write("a", b"new", FileMode::Private).is_err());
        assert_eq!(dir.view().read("a").unwrap().unwrap(), b"old");
    }

    #[test]
    fn a_view_of_nothing_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(matches!(DataDirView::open(tmp.path().join("no")), Err(DataDirError::Missing { .. })));
    }
}
