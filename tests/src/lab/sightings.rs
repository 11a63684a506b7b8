//! What Master each Server names, asked many times a second, and what must hold of all these answers together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use p2p_proto::status::code_of;
use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::cluster::{Access, BearerChannel};

/// Between two questions to one Server.
const EVERY: Duration = Duration::from_millis(50);
/// Who has not answered after this is silent: frozen, or behind a network that loses everything.
const PATIENCE: Duration = Duration::from_millis(2_500);

/// What one answer showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing listens there.
    Down,
    /// No answer came.
    Silent,
    /// There is no Master, it said.
    Nobody,
    /// There is one.
    Master(Title),
}

/// The Master as a Server names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title {
    /// Its name.
    pub name: String,
    /// Of the cluster.
    pub epoch: u64,
    /// Of the election.
    pub term: u64,
    /// Named for want of a quorum.
    pub provisional: bool,
}

/// `-` is nobody, `s1` a Master, `s1?` a provisional one.
impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sight::Down => f.write_str("down"),
            Sight::Silent => f.write_str("silent"),
            Sight::Nobody => f.write_str("-"),
            Sight::Master(Title { name, provisional, .. }) => {
                write!(f, "{name}{}", if *provisional { "?" } else { "" })
            }
        }
    }
}

/// A Server's answers have changed.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Since the first question to anybody.
    pub at: Duration,
    /// Its place among the Servers that are asked.
    pub server: usize,
    /// What it shows from now on.
    pub sight: Sight,
}

/// Questions under way, until dropped.
#[derive(Debug)]
pub struct Sightings {
    names: Vec<String>,
    began: Instant,
    seen: Arc<Mutex<Vec<Sighting>>>,
    /// Ends the questions with it.
    _runtime: Runtime,
}

impl Sightings {
    /// Starts to ask `servers`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When no threads can be started.
    pub fn start(servers: &[Access]) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (began, seen) = (Instant::now(), Arc::<Mutex<Vec<Sighting>>>::default());
        for (server, access) in servers.iter().enumerate() {
            runtime.spawn(ask(server, access.clone(), began, Arc::clone(&seen)));
        }
        let names = servers.iter().map(|access| access.name().to_owned()).collect();
        Ok(Sightings { names, began, seen, _runtime: runtime })
    }

    /// The Servers' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The time now, as sightings count it.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// All changes so far, in their order.
    pub fn all(&self) -> Vec<Sighting> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `server` showed from `since` on, told apart as people see it: first what it showed then.
    pub fn since(&self, server: usize, since: Duration) -> Vec<String> {
        shown_since(self.all().iter().filter(|sighting| sighting.server == server), since)
    }

    /// Second by second what each Server shows: first what it did at the beginning of that second, then each change
    /// within it; with `notes` where they belong.
    pub fn table(&self, notes: &[(Duration, String)]) -> String {
        let all = self.all();
        let mut lines = vec![format!("{:>4}  {}", "s", row(self.names.iter().map(String::as_str)))];
        let mut notes = notes.iter().peekable();
        for second in 0..=self.now().as_secs() {
            let (from, to) = (Duration::from_secs(second), Duration::from_secs(second + 1));
            let shown = (0..self.names.len()).map(|server| {
                let of = all.iter().filter(|sighting| sighting.server == server && sighting.at < to);
                shown_since(of, from).join(" ")
            });
            lines.push(format!("{second:>4}  {}", row(shown)));
            while let Some((when, note)) = notes.next_if(|(when, _)| when.as_secs() == second) {
                lines.push(format!("{:>4}  -- {note} (at {:.1} s)", "", when.as_secs_f64()));
            }
        }
        lines.join("\n")
    }

    /// Checks what holds of all titles ever shown (SPEC C5, C6).
    ///
    /// # Errors
    /// Two Servers without a mark of provisional in one (epoch, term), or a Server that went back.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut holders = BTreeMap::new();
        let mut last = BTreeMap::new();
        for Sighting { at, server, sight } in self.all() {
            let Sight::Master(title) = sight else { continue };
            let (by, at) = (&self.names[server], at.as_secs_f64());
            let age = (title.epoch, title.term);
            if let Some(before) = last.insert(server, age).filter(|before| *before > age) {
                anyhow::bail!("{by} went back from {before:?} to {age:?} at {at:.2} s");
            }
            if !title.provisional {
                let holder = holders.entry(age).or_insert_with(|| title.name.clone());
                anyhow::ensure!(
                    *holder == title.name,
                    "at {at:.2} s {by} named {} Master of (epoch, term) {age:?}, which {holder} was",
                    title.name
                );
            }
        }
        Ok(())
    }
}

fn shown_since<'a>(of_one: impl Iterator<Item = &'a Sighting>, since: Duration) -> Vec<String> {
    let mut shown: Vec<String> = Vec::new();
    for sighting in of_one {
        if sighting.at <= since {
            shown.clear();
        }
        shown.push(sighting.sight.to_string());
        shown.dedup();
    }
    shown
}

fn row(cells: impl Iterator<Item = impl fmt::Display>) -> String {
    cells.map(|cell| format!("{:<16}", cell.to_string())).collect::<String>().trim_end().to_owned()
}

async fn ask(server: usize, access: Access, began: Instant, seen: Arc<Mutex<Vec<Sighting>>>) {
    let mut channel: Option<BearerChannel> = None;
    let mut last = None;
    loop {
        let asked = began.elapsed();
        let sight = look(&access, &mut channel).await;
        if last.as_ref() != Some(&sight) {
            last = Some(sight.clone());
            // Silence began with the question.
            let at = if sight == Sight::Silent { asked } else { began.elapsed() };
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(Sighting { at, server, sight });
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(access: &Access, channel: &mut Option<BearerChannel>) -> Sight {
    // A connection may have broken since the last question: a new one shows whether anybody is there.
    for _ in 0..2 {
        let open = match channel.take() {
            Some(open) => open,
            None => match timeout(PATIENCE, access.channel(PATIENCE)).await {
                Ok(Ok(open)) => open,
                Ok(Err(_)) => return Sight::Down,
                Err(_) => return Sight::Silent,
            },
        };
        let mut client = ClusterClient::new(open.clone());
        let sight = match timeout(PATIENCE, client.get_master(v1::GetMasterRequest {})).await {
            Ok(Ok(reply)) => reply.into_inner().master.map_or(Sight::Nobody, |master| {
                Sight::Master(Title {
                    name: master.name,
                    epoch: master.epoch,
                    term: master.term,
                    provisional: master.provisional,
                })
            }),
            Ok(Err(status)) if code_of(&status).is_some() => Sight::Nobody,
            Ok(Err(_)) => continue,
            Err(_) => return Sight::Silent,
        };
        *channel = Some(open);
        return sight;
    }
    Sight::Down
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sightings(seen: &[(u64, usize, &str, u64)]) -> Sightings {
        let sightings = Sightings {
            names: vec!["s1".into(), "s2".into()],
            began: Instant::now(),
            seen: Arc::default(),
            _runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        };
        let seen = seen.iter().map(|(ms, server, shown, term)| {
            let title = |name: &str, provisional| {
                Sight::Master(Title { name: name.into(), epoch: 1, term: *term, provisional })
            };
            let sight = match (*shown, shown.strip_suffix('?')) {
                ("down", _) => Sight::Down,
                ("-", _) => Sight::Nobody,
                (_, Some(name)) => title(name, true),
                (name, None) => title(name, false),
            };
            Sighting { at: Duration::from_millis(*ms), server: *server, sight }
        });
        sightings.seen.lock().unwrap().extend(seen);
        sightings
    }

    #[test]
    fn shows_what_was_there_before_and_then_each_change() {
        let seen = sightings(&[
            (0, 0, "-", 0),
            (10, 0, "s1", 2),
            (15, 1, "s1", 2),
            (20, 0, "s1", 3),
            (30, 0, "down", 0),
        ]);
        let since = |ms| seen.since(0, Duration::from_millis(ms));
        assert_eq!(since(0), ["-", "s1", "down"]);
        assert_eq!(since(12), ["s1", "down"], "another term looks the same");
        assert_eq!(since(30), ["down"]);
    }

    #[test]
    fn finds_two_masters_and_steps_back() {
        let check = |seen: &[_]| sightings(seen).check().map_err(|e| e.to_string());
        check(&[(0, 0, "s1", 2), (1, 1, "s1", 2), (2, 1, "s2?", 2), (3, 0, "s2", 3)]).unwrap();
        let two = check(&[(0, 0, "s1", 2), (1, 1, "s2", 2)]).unwrap_err();
        assert!(two.contains("s2 named s2 Master of (epoch, term) (1, 2), which s1 was"), "{two}");
        let back = check(&[(0, 0, "s1", 2), (1, 0, "s2?", 1)]).unwrap_err();
        assert!(back.contains("s1 went back from (1, 2) to (1, 1)"), "{back}");
    }
}
