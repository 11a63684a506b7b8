//! A disk that can lose its power: what was not synced is gone, as on a real one.
//!
//! ```text
//! Server ─► ext4 ─► loop device ─► file ─► ext4 ─► loop device ─► file of this host
//!           the Server's             the disk's write cache          what the disk keeps
//! ```
//!
//! The inner file system is the Server's. Its disk is a file on the outer one, whose pages in memory play the part
//! of a disk's volatile write cache: what the inner one writes lands there, and goes on to the outer disk when
//! the inner one asks its disk to flush, which is what `fdatasync` does and what `sync_file_range` leaves out. At a
//! power loss the outer file system is shut down without writing anything more, not even its journal, and both
//! are mounted again, which replays the journals.
//!
//! All mounts are made in a mount namespace of this process ([`isolate_mounts`]): they are gone when its last
//! process is, whatever ended it, and with them the loop devices.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::cluster::run;

/// Of the Server's file system; only what is written takes room on this host.
const SIZE_MIB: u64 = 256;
/// Of the file system that holds it, with room for its own tables.
const OUTER_SIZE_MIB: u64 = 320;
/// `EXT4_IOC_SHUTDOWN` (`FS_IOC_SHUTDOWN` of Linux), which takes one of the flags below.
const SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
/// Not even the journal is written.
const WITHOUT_LOG_FLUSH: u32 = 2;
/// Above what a mount or an unmount takes on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives this process mounts of its own. To be called before any thread starts: threads keep what they began with.
///
/// # Errors
/// Without the right to do so.
pub fn isolate_mounts() -> io::Result<()> {
    let root: &CStr = c"/";
    // SAFETY: neither call touches memory of ours but the path, which ends with a zero byte.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            return Err(io::Error::last_os_error());
        }
        let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        if libc::mount(none, root.as_ptr(), none, flags, none.cast()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// One disk with one file system, mounted while this lives.
#[derive(Debug)]
pub(super) struct Disk {
    image: PathBuf,
    outer: PathBuf,
    inner: PathBuf,
}

impl Disk {
    /// A new one; its files and mount points go below `dir`.
    pub(super) fn new(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let place = |kind: &str| dir.join(format!("{name}-{kind}"));
        let disk = Disk { image: place("image"), outer: place("cache"), inner: place("disk") };
        for point in [&disk.outer, &disk.inner] {
            std::fs::create_dir(point).with_context(|| format!("making {}", point.display()))?;
        }
        make_file_system(&disk.image, OUTER_SIZE_MIB)?;
        mount(&disk.image, &disk.outer)?;
        make_file_system(&disk.inner_image(), SIZE_MIB)?;
        mount(&disk.inner_image(), &disk.inner)?;
        disk.write_back()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(super) fn dir(&self) -> &Path {
        &self.inner
    }

    /// Has the file system and its disk write what they hold back, as both do in time without being asked.
    pub(super) fn write_back(&self) -> anyhow::Result<()> {
        for point in [&self.inner, &self.outer] {
            let dir = File::open(point)?;
            // SAFETY: the call takes no pointer.
            if unsafe { libc::syncfs(dir.as_raw_fd()) } != 0 {
                return Err(io::Error::last_os_error())
                    .with_context(|| format!("writing {} back", point.display()));
            }
        }
        Ok(())
    }

    /// Power is gone: nothing reaches the disk any more, and every write to it fails.
    pub(super) fn lose_power(&self) -> anyhow::Result<()> {
        // The outer one first: from then on nothing is kept, and the order of the two tells nobody anything.
        shut_down(&self.outer)?;
        shut_down(&self.inner)
    }

    /// Power is back: mounts it again. Nobody may have a file of it open.
    pub(super) fn return_power(&self) -> anyhow::Result<()> {
        unmount(&self.inner, &[])?;
        unmount(&self.outer, &[])?;
        mount(&self.image, &self.outer)?;
        mount(&self.inner_image(), &self.inner)
    }

    fn inner_image(&self) -> PathBuf {
        self.outer.join("image")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also while a process still has it open, and when it was never mounted. What cannot be unmounted goes with
        // this process.
        let _ = unmount(&self.inner, &["--lazy"]);
        let _ = unmount(&self.outer, &["--lazy"]);
    }
}

fn make_file_system(image: &Path, size_mib: u64) -> anyhow::Result<()> {
    let file = File::create_new(image).with_context(|| format!("making {}", image.display()))?;
    file.set_len(size_mib << 20)?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F"]).arg(image).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    run(command, PATIENCE)?.success()?;
    Ok(())
}

fn mount(image: &Path, point: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("mount");
    command.args(["-o", "loop"]).arg(image).arg(point);
    run(command, PATIENCE)?.success()?;
    Ok(())
}

fn unmount(point: &Path, options: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("umount");
    command.args(options).arg(point);
    run(command, PATIENCE)?.success()?;
    Ok(())
}

fn shut_down(point: &Path) -> anyhow::Result<()> {
    let dir = File::open(point).with_context(|| format!("opening {}", point.display()))?;
    // SAFETY: the call reads a u32 behind the pointer.
    if unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &WITHOUT_LOG_FLUSH) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("shutting {} down", point.display()));
    }
    Ok(())
}
