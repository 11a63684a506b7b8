//! Looks for an order of all operations that a single register could have lived through.
//!
//! It goes as the search of Wing and Gong does: whatever was invoked before the earliest answer that is still to
//! be explained may come next; one is chosen, and so on until nothing is left to explain. That search branches,
//! and Lowe's memo bounds how often. Here it never has to: every change has a revision of its own, one above the
//! last, and a value is written once, so that an answer names the change it saw. What is left to choose makes no
//! difference:
//!
//! - An answer that changes nothing and fits is explained at once; later it could only fit worse.
//! - A change is made when the earliest answer needs a later revision. If an answer named the writer of the next
//!   revision, then that one makes it. Else nobody saw it, and some write of unknown outcome does: best a
//!   conditional one, which fits nowhere else; of the others any, since each could come at any later time too.
//!
//! So a history of n operations takes n log n steps, however many of them are of unknown outcome.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use super::{Call, Operation, Outcome, Versioned};

/// So many operations around the contradiction are shown.
const SHOWN: usize = 12;

/// Why no order explains a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What contradicts what.
    pub reason: String,
    /// What the register held when no order led on, if it came to that.
    pub reached: Option<Versioned>,
    /// The operations around it, in the order of their invocation.
    pub around: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the history is not linearizable: {}", self.reason)?;
        if let Some(reached) = self.reached {
            write!(f, "; explained up to revision {}", reached.revision)?;
        }
        self.around.iter().try_for_each(|operation| write!(f, "\n  {operation}"))
    }
}

impl std::error::Error for Violation {}

/// Explains `operations`, given in any order, as those of one register that held `start` before.
///
/// # Errors
/// The first answer that no order explains.
pub fn check(operations: &[Operation], start: Versioned) -> Result<(), Box<Violation>> {
    let mut by_invocation = operations.to_vec();
    by_invocation.sort_by_key(|operation| (operation.invoked, operation.returned));
    let makers = makers(&by_invocation)?;
    Search {
        operations: &by_invocation,
        makers,
        held: start,
        admitted: 0,
        due: BTreeSet::new(),
        open: BTreeSet::new(),
        conditional: BTreeMap::new(),
        unconditional: Vec::new(),
    }
    .explain()
}

/// Which operation made which revision, as far as answers say.
fn makers(operations: &[Operation]) -> Result<BTreeMap<u64, usize>, Box<Violation>> {
    let mut makers = BTreeMap::new();
    let mut writers = HashMap::new();
    let wrong = |reason: String, about: &[usize]| {
        let around = about.iter().map(|index| operations[*index]).collect();
        Err(Box::new(Violation { reason, reached: None, around }))
    };
    for (index, operation) in operations.iter().enumerate() {
        let Some(value) = operation.call.value() else { continue };
        if let Some(other) = writers.insert(value, index) {
            return wrong(
                "a value was written by two operations; nothing can be told then".into(),
                &[other, index],
            );
        }
        if let Outcome::Written { revision } = operation.outcome
            && let Some(other) = makers.insert(revision, index)
        {
            return wrong(format!("two writes made revision {revision}"), &[other, index]);
        }
    }
    for (index, operation) in operations.iter().enumerate() {
        let Outcome::Read(Versioned { value: Some(value), revision }) = operation.outcome else { continue };
        // What was there before the history began.
        let Some(writer) = writers.get(&value).copied() else { continue };
        match operations[writer].outcome {
            Outcome::Failed => return wrong("what a failed write wrote was read".into(), &[writer, index]),
            Outcome::Conflict => {
                return wrong("what a refused write wrote was read".into(), &[writer, index]);
            }
            Outcome::Written { .. } | Outcome::Unknown | Outcome::Read(_) => {}
        }
        let maker = *makers.entry(revision).or_insert(writer);
        if maker != writer {
            let reason = format!("revision {revision} was read with a value that another write gave it");
            return wrong(reason, &[maker, writer, index]);
        }
    }
    let mut made = HashMap::new();
    for (revision, maker) in &makers {
        if let Some(other) = made.insert(*maker, *revision) {
            return wrong(format!("one write made the revisions {other} and {revision}"), &[*maker]);
        }
    }
    Ok(makers)
}

struct Search<'a> {
    operations: &'a [Operation],
    makers: BTreeMap<u64, usize>,
    /// What the register holds after what is explained.
    held: Versioned,
    /// So many operations were looked at, in the order of their invocation.
    admitted: usize,
    /// Answers to explain, the earliest first.
    due: BTreeSet<(Duration, usize)>,
    /// Writes of unknown outcome that somebody saw.
    open: BTreeSet<usize>,
    /// Conditional ones that nobody saw, by the revision that they would have made.
    conditional: BTreeMap<u64, usize>,
    /// Others that nobody saw.
    unconditional: Vec<usize>,
}

impl Search<'_> {
    fn explain(mut self) -> Result<(), Box<Violation>> {
        let seen: BTreeSet<usize> = self.makers.values().copied().collect();
        loop {
            self.admit(&seen);
            if self.due.is_empty() {
                return Ok(());
            }
            if self.explain_what_fits() {
                continue;
            }
            if let Some(overtaken) = self.overtaken() {
                return Err(self.stuck("this answer tells of the past", overtaken));
            }
            self.change()?;
        }
    }

    /// Lets in whatever was invoked before the earliest answer that is due.
    fn admit(&mut self, seen: &BTreeSet<usize>) {
        while let Some(operation) = self.operations.get(self.admitted) {
            if self.due.first().is_some_and(|(returned, _)| operation.invoked > *returned) {
                return;
            }
            let index = self.admitted;
            self.admitted += 1;
            match (operation.outcome, operation.call) {
                (Outcome::Failed, _) | (Outcome::Unknown, Call::Read) => {}
                (Outcome::Unknown, _) if seen.contains(&index) => {
                    self.open.insert(index);
                }
                (Outcome::Unknown, Call::WriteIf { expected, .. }) => {
                    self.conditional.insert(expected + 1, index);
                }
                (Outcome::Unknown, Call::Write { .. }) => self.unconditional.push(index),
                _ => {
                    self.due.insert((operation.returned, index));
                }
            }
        }
    }

    /// Explains the due answers that tell what the register holds; whether there were any.
    fn explain_what_fits(&mut self) -> bool {
        let (operations, held) = (self.operations, self.held);
        let before = self.due.len();
        self.due.retain(|(_, index)| match (operations[*index].outcome, operations[*index].call) {
            (Outcome::Read(found), _) => found != held,
            (Outcome::Conflict, Call::WriteIf { expected, .. }) => expected == held.revision,
            _ => true,
        });
        self.due.len() < before
    }

    /// A due answer that no later state explains.
    fn overtaken(&self) -> Option<usize> {
        let is_past = |index: &usize| match self.operations[*index].outcome {
            Outcome::Read(found) => found.revision <= self.held.revision,
            Outcome::Written { revision } => revision <= self.held.revision,
            Outcome::Conflict | Outcome::Failed | Outcome::Unknown => false,
        };
        self.due.iter().map(|(_, index)| *index).find(is_past)
    }

    /// Makes the next revision.
    fn change(&mut self) -> Result<(), Box<Violation>> {
        let revision = self.held.revision + 1;
        let maker = match self.makers.get(&revision) {
            Some(maker) => {
                let due = (self.operations[*maker].returned, *maker);
                if !self.due.remove(&due) && !self.open.remove(maker) {
                    return Err(self.stuck("what it wrote was seen before it began", *maker));
                }
                *maker
            }
            None => {
                let nobody_saw = self.conditional.remove(&revision).or_else(|| self.unconditional.pop());
                let Some(maker) = nobody_saw else {
                    let (_, earliest) = *self.due.first().expect("asked only while an answer is due");
                    return Err(self.stuck("nothing that was under way explains this answer", earliest));
                };
                maker
            }
        };
        let operation = &self.operations[maker];
        if let Call::WriteIf { expected, .. } = operation.call
            && expected != self.held.revision
        {
            return Err(self.stuck("it was done although the revision was another", maker));
        }
        if let Some(value) = operation.call.value() {
            self.held = Versioned { value: Some(value), revision };
        }
        Ok(())
    }

    fn stuck(&self, reason: &str, about: usize) -> Box<Violation> {
        let mut around = vec![self.operations[about]];
        let makers = [self.held.revision, self.held.revision + 1];
        around.extend(
            makers
                .iter()
                .filter_map(|revision| self.makers.get(revision))
                .map(|maker| self.operations[*maker]),
        );
        around.extend(self.due.iter().take(SHOWN).map(|(_, index)| self.operations[*index]));
        around.sort_by_key(|operation| (operation.invoked, operation.returned));
        around.dedup();
        let reason = format!("{reason}: {}", self.operations[about]);
        Box::new(Violation { reason, reached: Some(self.held), around })
    }
}
