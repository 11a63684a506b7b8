//! Transcripts: what is done to Servers, and what Master each of them names from then on, as a file says it.
//!
//! ```text
//! # Prose.
//! servers 2
//!
//! kill s1, within 5 s
//!   s1: s1 down
//!   s2: s1 [-] s2?
//! ```
//!
//! A step is a deed and a time, which counts from when it is done. Below it stands for each Server what it shows from the deed on, in this order and
//! nothing else: `s1` is a Master, `s1?` a provisional one, `-` nobody; `down` and `silent` are no answers. What
//! is in brackets comes or not. `M` is any Master without a mark, at the end of a step the same at all Servers. The step is over when all show their last word, and fails when its time is.
//! After each step all stay as they are for a second.
//!
//! | deed | |
//! |---|---|
//! | `look` | nothing is done |
//! | `kill NAME...`, `stop NAME`, `start NAME...` | SIGKILL, a clean stop, a start from the data directory |
//! | `freeze NAME...`, `thaw NAME...` | SIGSTOP, SIGCONT |
//! | `cut NAME... from NAME...`, `heal` | a partition, the end of all |

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::Lab;
use super::sightings::Sightings;
use crate::cluster::{Access, Cluster, ServerProcess, Signal, Start, wait_for};

/// All show their last word for this long before a step is over.
const SETTLED: Duration = Duration::from_secs(1);
/// In place of the name of a Master that could be any.
const ANY_MASTER: &str = "M";
/// A clean stop takes at most this long; its own deadline is two seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A parsed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    servers: usize,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// As it is written.
    line: String,
    deed: Deed,
    within: Duration,
    /// By the Servers' places.
    expected: Vec<Vec<Word>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Deed {
    Look,
    Kill(Vec<usize>),
    Stop(usize),
    Start(Vec<usize>),
    Freeze(Vec<usize>),
    Thaw(Vec<usize>),
    Cut(Vec<usize>, Vec<usize>),
    Heal,
}

/// What a Server shows for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    may_be_missing: bool,
}

impl Transcript {
    /// Reads a file.
    ///
    /// # Errors
    /// With the line that makes no sense.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut transcript = Transcript { servers: 0, steps: Vec::new() };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        for (index, line) in lines {
            transcript.line(line).with_context(|| format!("line {}: {line}", index + 1))?;
        }
        for step in &transcript.steps {
            let complete = step.expected.iter().all(|words| words.last().is_some_and(|w| !w.may_be_missing));
            ensure!(complete, "'{}' does not say for each Server what it shows at last", step.line);
        }
        ensure!(!transcript.steps.is_empty(), "nothing is done");
        Ok(transcript)
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        if let Some(count) = line.strip_prefix("servers ") {
            self.servers = count.parse()?;
            return Ok(());
        }
        if let Some(expected) = line.strip_prefix("  ") {
            let (name, words) = expected.split_once(": ").context("it has no colon")?;
            let place = self.place(name)?;
            let step = self.steps.last_mut().context("no step is above it")?;
            step.expected[place] = words.split_whitespace().map(Word::parse).collect();
            return Ok(());
        }
        let (deed, within) = line.split_once(", within ").context("it has no time")?;
        let seconds = within.strip_suffix(" s").context("it has no seconds")?;
        self.steps.push(Step {
            line: line.to_owned(),
            deed: self.deed(deed)?,
            within: Duration::from_secs(seconds.parse()?),
            expected: vec![Vec::new(); self.servers],
        });
        Ok(())
    }

    fn deed(&self, text: &str) -> anyhow::Result<Deed> {
        let mut words = text.split(' ');
        let verb = words.next().unwrap_or_default();
        let names: Vec<&str> = words.collect();
        let places = |names: &[&str]| {
            ensure!(!names.is_empty(), "to whom?");
            names.iter().map(|name| self.place(name)).collect::<anyhow::Result<Vec<_>>>()
        };
        Ok(match (verb, &names[..]) {
            ("look", []) => Deed::Look,
            ("heal", []) => Deed::Heal,
            ("kill", names) => Deed::Kill(places(names)?),
            ("stop", [name]) => Deed::Stop(self.place(name)?),
            ("start", names) => Deed::Start(places(names)?),
            ("freeze", names) => Deed::Freeze(places(names)?),
            ("thaw", names) => Deed::Thaw(places(names)?),
            ("cut", names) => {
                let between = names.iter().position(|name| *name == "from").context("from whom?")?;
                Deed::Cut(places(&names[..between])?, places(&names[between + 1..])?)
            }
            _ => bail!("nobody can do that"),
        })
    }

    fn place(&self, name: &str) -> anyhow::Result<usize> {
        let found = (0..self.servers).find(|place| *name == server_name(*place));
        found.with_context(|| format!("there is no {name}"))
    }

    /// Plays it on a lab of its own; returns what was shown second by second.
    ///
    /// # Errors
    /// When Servers show something else, with what they showed and the last lines of their logs.
    pub fn play(&self) -> anyhow::Result<String> {
        let lab = Lab::up(self.servers)?;
        let dir = tempfile::Builder::new().prefix("p2pcore-lab-").tempdir().context("making a directory")?;
        lab.outside(|| {
            let mut cluster = lab.cluster(self.servers, dir.path())?;
            let played = self.play_on(&lab, &mut cluster);
            cluster.explain(played)
        })?
    }

    fn play_on(&self, lab: &Lab, cluster: &mut Cluster) -> anyhow::Result<String> {
        let token = cluster.servers[0].token("operator", 1, "1h")?;
        let servers = cluster.servers.iter().map(|server| Access::of(server, &token));
        let sightings = Sightings::start(&servers.collect::<anyhow::Result<Vec<_>>>()?)?;
        wait_for("answers of all Servers", SETTLED * 10, || {
            let answered =
                (0..self.servers).all(|server| !sightings.since(server, Duration::ZERO).is_empty());
            ensure!(answered, "somebody was not asked yet");
            Ok(())
        })?;
        let mut notes = Vec::new();
        for step in &self.steps {
            let began = sightings.now();
            notes.push((began, step.line.clone()));
            let done = step.deed.act(lab, &mut cluster.servers).map(|()| sightings.now());
            notes.extend(done.as_ref().ok().map(|done| (*done, "done".to_owned())));
            let settled = done.and_then(|done| step.await_words(&sightings, began, done));
            let told = || format!("'{}'\n{}", step.line, sightings.table(&notes));
            let settled = settled.with_context(told)?;
            notes.push((settled, "settled".to_owned()));
        }
        sightings.check().with_context(|| sightings.table(&notes))?;
        Ok(sightings.table(&notes))
    }
}

impl Step {
    /// Waits until all show what they shall since the deed `began`, for a while; says when the last one began to.
    fn await_words(
        &self,
        sightings: &Sightings,
        began: Duration,
        done: Duration,
    ) -> anyhow::Result<Duration> {
        let shown = |server: usize| sightings.since(server, began);
        let is_last = |server: usize| {
            let last = self.expected[server].last().expect("the parser asked for one");
            shown(server).last().is_some_and(|shown| last.is(shown))
        };
        let (mut settled, deadline) = (None, done + self.within);
        loop {
            let now = sightings.now();
            let all = (0..self.expected.len()).all(is_last) && self.agree(shown);
            settled = all.then(|| settled.unwrap_or(now));
            match settled {
                Some(since) if now >= since + SETTLED => break,
                None if now > deadline => break,
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        for (server, expected) in self.expected.iter().enumerate() {
            let shown = shown(server);
            ensure!(
                fits(expected, &shown),
                "{} showed {}, not {}",
                server_name(server),
                shown.join(" "),
                expected.iter().map(Word::written).collect::<Vec<_>>().join(" ")
            );
        }
        settled.context("they did not stay so")
    }

    /// Whether all who may name any Master at last name the same.
    fn agree(&self, shown: impl Fn(usize) -> Vec<String>) -> bool {
        let free = self.expected.iter().enumerate();
        let free = free.filter(|(_, words)| words.last().is_some_and(|word| word.text == ANY_MASTER));
        let mut chosen: Vec<_> = free.filter_map(|(server, _)| shown(server).pop()).collect();
        chosen.dedup();
        chosen.len() <= 1
    }
}

impl Deed {
    fn act(&self, lab: &Lab, servers: &mut [ServerProcess]) -> anyhow::Result<()> {
        let mut each = |places: &[usize], act: &dyn Fn(&mut ServerProcess) -> anyhow::Result<()>| {
            places.iter().try_for_each(|place| act(&mut servers[*place]))
        };
        match self {
            Deed::Look => Ok(()),
            Deed::Kill(places) => each(places, &ServerProcess::kill),
            Deed::Stop(place) => each(&[*place], &|server| {
                let status = server.process_mut()?.terminate(STOP_TIMEOUT)?;
                ensure!(status.success(), "a clean stop ended with {status}");
                Ok(())
            }),
            Deed::Start(places) => each(places, &|server| server.start(Start::Again)),
            Deed::Freeze(places) => each(places, &|server| server.process_mut()?.signal(Signal::Stop)),
            Deed::Thaw(places) => each(places, &|server| server.process_mut()?.signal(Signal::Continue)),
            Deed::Cut(some, others) => {
                let names =
                    |places: &[usize]| places.iter().map(|place| server_name(*place)).collect::<Vec<_>>();
                lab.partition(&names(some), &names(others))
            }
            Deed::Heal => lab.heal(),
        }
    }
}

impl Word {
    fn parse(text: &str) -> Self {
        match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            Some(text) => Word { text: text.to_owned(), may_be_missing: true },
            None => Word { text: text.to_owned(), may_be_missing: false },
        }
    }

    fn is(&self, shown: &str) -> bool {
        let is_master = shown.starts_with('s') && shown != "silent" && !shown.ends_with('?');
        self.text == shown || self.text == ANY_MASTER && is_master
    }

    fn written(&self) -> String {
        if self.may_be_missing { format!("[{}]", self.text) } else { self.text.clone() }
    }
}

/// Servers of a cluster are named in the order in which they were added.
fn server_name(place: usize) -> String {
    format!("s{}", place + 1)
}

/// Whether `shown` is `expected`, with or without what may be missing.
fn fits(expected: &[Word], shown: &[String]) -> bool {
    match (expected.split_first(), shown.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((word, rest)), _) if word.may_be_missing && fits(rest, shown) => true,
        (Some((word, rest)), Some((first, others))) => word.is(first) && fits(rest, others),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Prose.\nservers 2\n\nkill s1, within 5 s\n  s1: s1 down\n  s2: s1 [-] s2?\n";

    #[test]
    fn reads_steps() {
        let transcript = Transcript::parse(GOOD).unwrap();
        let step = &transcript.steps[0];
        assert_eq!((&step.deed, step.within), (&Deed::Kill(vec![0]), Duration::from_secs(5)));
        let written: Vec<_> = step.expected[1].iter().map(Word::written).collect();
        assert_eq!(written, ["s1", "[-]", "s2?"]);
        let cut = Transcript::parse(&GOOD.replace("kill s1", "cut s1 from s2")).unwrap();
        assert_eq!(cut.steps[0].deed, Deed::Cut(vec![0], vec![1]));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for (good, bad, complaint) in [
            ("kill s1", "tickle s1", "nobody can do that"),
            ("kill s1", "kill s3", "there is no s3"),
            ("kill s1", "kill", "to whom?"),
            (", within 5 s", "", "it has no time"),
            ("  s1: s1 down\n", "", "does not say for each Server"),
            ("s2?", "[s2?]", "does not say for each Server"),
        ] {
            let said = format!("{:#}", Transcript::parse(&GOOD.replace(good, bad)).unwrap_err());
            assert!(said.contains(complaint), "{bad}: {said}");
        }
    }

    #[test]
    fn compares_with_and_without_what_may_be_missing() {
        let words = |text: &str| text.split_whitespace().map(Word::parse).collect::<Vec<_>>();
        let shown = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(fits(&words("- M"), &shown("- s2")) && !fits(&words("M"), &shown("s2?")));
        let expected = words("s1 [-] [s1] s2?");
        for good in ["s1 - s2?", "s1 s2?", "s1 s1 s2?", "s1 - s1 s2?"] {
            assert!(fits(&expected, &shown(good)), "{good}");
        }
        for bad in ["s1", "s1 - s2", "s1 - - s2?", "- s2?", "s1 s2? s1"] {
            assert!(!fits(&expected, &shown(bad)), "{bad}");
        }
    }
}
