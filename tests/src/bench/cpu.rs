//! What a process has cost so far.

use std::path::Path;

use anyhow::Context;

/// Processor seconds, user and system, that the processes and all their ended and living descendants used.
///
/// # Errors
/// When one of them is gone.
pub fn cpu_seconds(pids: &[u32]) -> anyhow::Result<f64> {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let mut total = 0.0;
    let mut open = pids.to_vec();
    while let Some(pid) = open.pop() {
        let stat = read(&Path::new("/proc").join(pid.to_string()).join("stat"))?;
        // The name in parentheses may hold anything; fields are counted from after it, the state being 3.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |number: usize| -> anyhow::Result<f64> {
            let text = fields.get(number - 3).context("a field of /proc/PID/stat is missing")?;
            Ok(text.parse()?)
        };
        total += (field(14)? + field(15)? + field(16)? + field(17)?) / ticks;
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        open.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(total)
}

/// Processor seconds, user and system, that this process used, to the nanosecond.
pub fn own_cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours to write.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn counts_what_we_burn() {
        let me = [std::process::id()];
        let before = cpu_seconds(&me).unwrap();
        let start = Instant::now();
        while cpu_seconds(&me).unwrap() < before + 0.05 {
            assert!(start.elapsed() < Duration::from_secs(30), "it does not move");
        }
        assert!(cpu_seconds(&[u32::MAX]).is_err());
        // A tick of the other clock is 10 ms.
        assert!((own_cpu_seconds() - cpu_seconds(&me).unwrap()).abs() < 0.1);
    }
}
