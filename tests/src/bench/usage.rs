//! Processor time of processes, from the scheduler's statistics.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Time on the processor of each thread so far. Nanoseconds, where `/proc/PID/stat` has ticks of 10 ms.
pub(crate) struct Usage(BTreeMap<(u32, u32), u64>);

impl Usage {
    /// Of these processes and all that they started.
    ///
    /// # Errors
    ///
    /// A process that is not there.
    pub(crate) fn of(processes: &[u32]) -> Result<Self> {
        let mut threads = BTreeMap::new();
        let mut left: Vec<u32> = processes.to_vec();
        while let Some(process) = left.pop() {
            let tasks = fs::read_dir(format!("/proc/{process}/task"));
            for task in tasks.with_context(|| format!("process {process}"))? {
                let task = task?;
                let Some(thread) = task.file_name().to_str().and_then(|id| id.parse().ok()) else {
                    continue;
                };
                // A thread may end while it is looked at; so may a child.
                let Ok(line) = fs::read_to_string(task.path().join("schedstat")) else { continue };
                let on_cpu = line.split(' ').next().and_then(|ns| ns.parse().ok());
                threads.insert((process, thread), on_cpu.context("schedstat")?);
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                let children = children.split_whitespace().filter_map(|id| id.parse::<u32>().ok());
                left.extend(
                    children.filter(|id| fs::exists(format!("/proc/{id}")).unwrap_or(false)),
                );
            }
        }
        Ok(Self(threads))
    }

    /// Seconds spent since then. A thread that has ended since counts for nothing.
    pub(crate) fn since(&self, before: &Self) -> f64 {
        let spent = self
            .0
            .iter()
            .map(|(thread, &now)| now.saturating_sub(before.0.get(thread).copied().unwrap_or(0)));
        spent.sum::<u64>() as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    /// Against what the kernel tells the process itself (`times`, of the shell).
    #[test]
    fn the_time_of_a_process_and_its_children_is_counted() {
        // The child works, tells, and waits for the end of input; its parent only waits.
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; times";
        let mut parent = Command::new("sh")
            .args(["-c", &format!("exec 3<&0; ({work}; read x <&3) & wait")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut told).unwrap();
        let counted = Usage::of(&[parent.id()]).unwrap().since(&Usage(BTreeMap::new()));
        drop(parent.stdin.take());
        parent.wait().unwrap();
        // As in "0m0.51s 0m0.00s".
        let seconds = |text: &str| {
            let (minutes, rest) = text.split_once('m').unwrap();
            minutes.parse::<f64>().unwrap() * 60.0
                + rest.trim_end_matches('s').parse::<f64>().unwrap()
        };
        let told: f64 = told.split_whitespace().map(seconds).sum();
        assert!(told > 0.1, "the work is too little to tell: {told} s");
        // Two ticks of 10 ms may be missing from what is told, and the parent's start.
        assert!(
            (told - 0.02..told + 0.05).contains(&counted),
            "{counted} s counted, {told} s told"
        );
        assert!(Usage::of(&[u32::MAX]).is_err());
    }
}
