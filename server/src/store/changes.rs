//! What one write does to the tree, as a whole or not at all.

use sled::Batch;

/// Keys to be written and deleted in one step.
#[derive(Debug, Default)]
pub struct Changes {
    of: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Changes {
    /// Sets a key.
    pub fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.of.push((key, Some(value)));
    }

    /// Deletes a key, unless it is inserted later.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.of.push((key, None));
    }

    /// One key is written at once; sled puts a head before a batch, which it writes by itself.
    pub fn apply(mut self, tree: &sled::Tree) -> sled::Result<()> {
        if let [(key, Some(value))] = &mut self.of[..] {
            return tree.insert(std::mem::take(key), std::mem::take(value)).map(drop);
        }
        let mut batch = Batch::default();
        for (key, value) in self.of {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        tree.apply_batch(batch)
    }
}
