//! What processes cost.

use std::fs;
use std::io;
use std::process::Child;
use std::time::Duration;

use crate::stats::Usage;

/// A process and its descendants.
#[derive(Debug, Clone)]
pub struct Tree {
    root: u32,
}

impl Tree {
    /// The tree below `pid`. An error says that it cannot be measured.
    pub fn new(pid: u32) -> io::Result<Self> {
        if cfg!(not(target_os = "linux")) {
            let text = "--pid is supported on Linux alone: elsewhere there is no /proc to read";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        fs::metadata(format!("/proc/{pid}/stat"))?;
        Ok(Self { root: pid })
    }

    /// The tree below a child of this process; elsewhere than on Linux, its usage is nothing.
    pub fn of(child: &Child) -> Self {
        Self { root: child.id() }
    }

    /// Processor time so far and peak memory, all processes.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for pid in self.members() {
            let (cpu, threads) = cpu_of(pid);
            usage.cpu += cpu;
            usage.threads.extend(threads);
            usage.peak_memory += status_bytes(pid, "VmHWM:");
        }
        usage
    }

    /// Resident memory now, in bytes.
    pub fn memory(&self) -> u64 {
        self.members().into_iter().map(|pid| status_bytes(pid, "VmRSS:")).sum()
    }

    fn members(&self) -> Vec<u32> {
        let parents = parents();
        let mut members = vec![self.root];
        let mut at = 0;
        while at < members.len() {
            let parent = members[at];
            members.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        members
    }
}

/// Every process and its parent.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, stat_field(pid, 1)?.try_into().ok()?))).collect()
}

/// A number of `/proc/PID/stat`, counted from the state (proc(5) field 3).
fn stat_field(pid: u32, index: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(index)?.parse().ok()
}

/// Of all threads: together, and each. The scheduler's own count has nanoseconds; utime and stime, where there is
/// none, have hundredths of a second, too coarse for a run of a few.
fn cpu_of(pid: u32) -> (Duration, Vec<(u32, String, Duration)>) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let threads: Vec<_> = tasks.into_iter().flatten().filter_map(|task| thread_of(&task.ok()?)).collect();
    let precise: Duration = threads.iter().map(|(_, _, cpu)| *cpu).sum();
    // Threads that ended are in the second count alone.
    let ticks = stat_field(pid, 11).unwrap_or(0) + stat_field(pid, 12).unwrap_or(0);
    let coarse = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1));
    let cpu = if coarse > precise + Duration::from_millis(20) { coarse } else { precise };
    (cpu, threads)
}

/// A thread's number, its name, and its time by the scheduler.
fn thread_of(task: &fs::DirEntry) -> Option<(u32, String, Duration)> {
    let number = task.file_name().to_str()?.parse().ok()?;
    let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
    let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
    Some((number, name, Duration::from_nanos(text.split_ascii_whitespace().next()?.parse().ok()?)))
}

fn status_bytes(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// This process's own processor time.
pub fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Lets this process hold as many connections as it may.
pub fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it, scenarios of thousands of connections say what failed.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;
    use std::thread;
    use std::time::Instant;

    use rustix::process::{Pid, Signal};

    use super::*;

    #[test]
    fn what_children_cost_counts() {
        let mut child =
            Command::new("sh").args(["-c", "while :; do :; done & wait"]).process_group(0).spawn().unwrap();
        let tree = Tree::new(child.id()).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let mut usage = tree.usage();
        while (usage.cpu <= Duration::from_millis(20) || usage.peak_memory <= 100_000)
            && Instant::now() < until
        {
            thread::sleep(Duration::from_millis(10));
            usage = tree.usage();
        }
        let group = Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process_group(group, Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(usage.cpu > Duration::from_millis(20), "{usage:?}");
        assert!(usage.peak_memory > 100_000, "{usage:?}");
    }
}
