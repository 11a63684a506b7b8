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
    }
}
