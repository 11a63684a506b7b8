//! The files of the audit log: one that grows, and four full ones behind it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::AuditRecord;

/// The file that grows; full ones have `.1` (the newest) to `.4` behind their name.
pub const AUDIT_FILE: &str = "audit.log";
/// A file that would become longer is put aside first: some 80,000 calls.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Full files kept; the oldest goes when there is another.
const KEPT: usize = 4;
/// The owner alone.
const MODE: u32 = 0o600;

/// Appends lines.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl RotatingFile {
    /// Goes on with the files of a directory.
    ///
    /// # Errors
    /// When the file cannot be opened, or made private.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Self::open_bounded(dir, FILE_BYTES_MAX)
    }

    fn open_bounded(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        let path = dir.join(AUDIT_FILE);
        let mut file = open(&path)?;
        let mut bytes = file.metadata()?.len();
        // A crash may have left half a line, which must not take the next one with it.
        if bytes > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(RotatingFile { path, file, bytes, bytes_max })
    }

    /// Where it writes.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When the file system refuses. The next line is tried anew.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            match fs::rename(kept(&self.path, number), kept(&self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, kept(&self.path, 1))?;
        self.file = open(&self.path)?;
        self.bytes = self.file.metadata()?.len();
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path)?;
    // One that was there may have been opened to others.
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok(file)
}

fn kept(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// All records of a directory, oldest first, and how many lines could not be read.
///
/// # Errors
/// When a file is there and cannot be read.
pub(crate) fn read_all(dir: &Path) -> io::Result<(Vec<AuditRecord>, usize)> {
    let path = dir.join(AUDIT_FILE);
    let (mut records, mut unreadable) = (Vec::new(), 0);
    let full = (1..=KEPT).rev().map(|number| kept(&path, number));
    for path in full.chain([path.clone()]) {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            match serde_json::from_slice(&line) {
                Ok(record) => records.push(record),
                Err(_) if line.is_empty() => {}
                Err(_) => unreadable += 1,
            }
        }
    }
    Ok((records, unreadable))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: usize) -> AuditRecord {
        AuditRecord { target: n.to_string(), ..AuditRecord::default() }
    }

    fn targets(dir: &Path) -> Vec<usize> {
        let (records, unreadable) = read_all(dir).unwrap();
        assert_eq!(unreadable, 0);
        records.iter().map(|record| record.target.parse().unwrap()).collect()
    }

    #[test]
    fn full_files_go_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let line = record(100).to_line().len() as u64;
        let mut file = RotatingFile::open_bounded(dir.path(), 3 * line).unwrap();
        for n in 100..114 {
            file.append(&record(n).to_line()).unwrap();
        }
        assert_eq!(targets(dir.path()), (100..114).collect::<Vec<_>>());
        for n in 114..118 {
            file.append(&record(n).to_line()).unwrap();
        }
        assert_eq!(targets(dir.path()), (103..118).collect::<Vec<_>>());
        let mut names = Vec::new();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, MODE, "{:?}", entry.file_name());
            assert!(metadata.len() <= 3 * line);
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3", "audit.log.4"]);
    }

    #[test]
    fn a_restart_goes_on_behind_what_a_crash_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(AUDIT_FILE);
        let whole = record(1).to_line();
        fs::write(&path, [&whole[..], &whole[..7]].concat()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let mut file = RotatingFile::open(dir.path()).unwrap();
        file.append(&record(2).to_line()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let (records, unreadable) = read_all(dir.path()).unwrap();
        assert_eq!((records, unreadable), (vec![record(1), record(2)], 1));
    }
}
