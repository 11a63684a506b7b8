//! How a remote Server is: active or not, since when and why not. Logged when it changes, and only then (SPEC T5).

use p2p_common::UnixMs;
use p2p_runtime::clock::unix_now;
use slog::{Logger, debug, info};
use tokio::sync::watch;

/// How a remote Server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteStatus {
    /// Our message stream to it is taken there.
    pub active: bool,
    /// In this state since.
    pub since: UnixMs,
    /// Why not active; empty when it is.
    pub reason: String,
}

/// The one writer of a remote's status.
#[derive(Debug)]
pub(super) struct StatusCell {
    tx: watch::Sender<RemoteStatus>,
    log: Logger,
}

impl StatusCell {
    pub fn new(log: Logger) -> Self {
        let reason = "not dialled yet".to_owned();
        StatusCell { tx: watch::Sender::new(RemoteStatus { active: false, since: unix_now(), reason }), log }
    }

    pub fn get(&self) -> RemoteStatus {
        self.tx.borrow().clone()
    }

    /// It is reached at `address`.
    pub fn activate(&self, address: &str) {
        self.change(true, String::new(), |_| info!(self.log, "connected to server"; "address" => address));
    }

    /// It is not reached.
    pub fn deactivate(&self, reason: String) {
        self.change(false, reason, |status| {
            if status.active {
                info!(self.log, "connection to server lost"; "reason" => &status.reason);
            } else {
                debug!(self.log, "no connection to server"; "reason" => &status.reason);
            }
        });
    }

    /// Says what the status becomes, with `active` as it was.
    fn change(&self, active: bool, reason: String, say: impl FnOnce(&RemoteStatus)) {
        self.tx.send_if_modified(|status| {
            if (status.active, &status.reason) == (active, &reason) {
                return false;
            }
            status.reason = reason;
            say(status);
            if status.active != active {
                (status.active, status.since) = (active, unix_now());
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slog::{Drain, Level, OwnedKVList, Record, o};
    use std::sync::{Arc, Mutex};

    /// What was logged: level and message.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<(Level, String)>>>);

    impl Drain for Heard {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
            self.0.lock().unwrap().push((record.level(), record.msg().to_string()));
            Ok(())
        }
    }

    #[test]
    fn only_changes_are_logged() {
        let heard = Heard::default();
        let cell = StatusCell::new(Logger::root(heard.clone(), o!()));
        for _ in 0..3 {
            cell.deactivate("refused".into());
        }
        let since = cell.get().since;
        for _ in 0..3 {
            cell.activate("10.0.0.1:7400");
        }
        assert_eq!((cell.get().active, cell.get().reason.as_str()), (true, ""));
        assert!(cell.get().since >= since);
        for _ in 0..3 {
            cell.deactivate("the connection broke".into());
        }
        assert_eq!((cell.get().active, cell.get().reason.as_str()), (false, "the connection broke"));
        let heard: Vec<_> = heard.0.lock().unwrap().drain(..).collect();
        let expected = [
            (Level::Debug, "no connection to server"),
            (Level::Info, "connected to server"),
            (Level::Info, "connection to server lost"),
        ];
        assert_eq!(heard, expected.map(|(level, message)| (level, message.to_owned())));
    }
}
