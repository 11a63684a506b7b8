//! What a process holds right now.

use std::path::Path;

use anyhow::Context;

/// What of the machine a process occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory; what the kernel holds for its sockets is not in it.
    pub resident_bytes: u64,
    /// Open files, sockets and all.
    pub open_files: usize,
}

/// Looks at the process.
///
/// # Errors
/// When it is gone.
pub fn footprint(pid: u32) -> anyhow::Result<Footprint> {
    let dir = Path::new("/proc").join(pid.to_string());
    let status = std::fs::read_to_string(dir.join("status")).with_context(|| format!("looking at {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no resident memory")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    let open_files = std::fs::read_dir(dir.join("fd"))?.count();
    Ok(Footprint { resident_bytes: kibibytes * 1024, open_files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_we_take() {
        let before = footprint(std::process::id()).unwrap();
        let memory = vec![1_u8; 64 << 20];
        let files: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let with = footprint(std::process::id()).unwrap();
        assert!(with.resident_bytes >= before.resident_bytes + (60 << 20), "{before:?} {with:?}");
        // Other tests open and close files meanwhile.
        assert!(with.open_files + 10 >= before.open_files + files.len(), "{before:?} {with:?}");
        assert_eq!(memory.len() % 2, 0);
        assert!(footprint(u32::MAX).is_err());
    }
}
