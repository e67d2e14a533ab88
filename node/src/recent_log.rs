//! The last lines of this process's log, kept in memory for whoever is to look into what happened:
//! the log itself may be out of reach.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that are kept.
const LINES_MAX: usize = 2000;

/// Characters of a line that are kept.
const LINE_MAX: usize = 2048;

/// The last lines. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RecentLog(Arc<Mutex<VecDeque<String>>>);

impl RecentLog {
    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    fn keep(&self, text: &str) {
        let mut lines = self.lock();
        for line in text.lines() {
            if lines.len() >= LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(line.chars().take(LINE_MAX).collect());
        }
    }
}

impl io::Write for RecentLog {
    /// Whole lines, as the log writes them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.keep(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RecentLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        let log = RecentLog::default();
        for number in 0..=LINES_MAX {
            log.keep(&format!("line {number}\n"));
        }
        let lines = log.lines();
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!(lines.first().map(String::as_str), Some("line 1"));
        log.keep(&"ä".repeat(LINE_MAX + 1));
        let last = log.lines().pop().unwrap_or_default();
        assert_eq!(last.chars().count(), LINE_MAX);
    }
}
