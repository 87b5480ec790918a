//! Tables that were read lately.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::DiskError;

/// What the cache may hold, in bytes.
const CAPACITY: usize = 16 << 20;

/// A table of 64-bit entries.
pub(crate) type Table = Arc<[u64]>;

/// Tables by where they lie in the image file. Threads share it; whoever misses reads, perhaps twice.
#[derive(Default)]
pub(crate) struct TableCache {
    tables: Mutex<(HashMap<u64, Table>, usize)>,
}

impl TableCache {
    /// The table at `offset`, which `read` reads if it is not there.
    pub(crate) fn get(
        &self,
        offset: u64,
        read: impl FnOnce() -> Result<Vec<u64>, DiskError>,
    ) -> Result<Table, DiskError> {
        if let Some(table) = self.lock().0.get(&offset) {
            return Ok(table.clone());
        }
        let table: Table = read()?.into();
        let mut tables = self.lock();
        // Whoever walks over an image comes to a table many times in a row, and then never again.
        if tables.1 + size_of_val(&*table) > CAPACITY {
            *tables = (HashMap::new(), 0);
        }
        tables.1 += size_of_val(&*table);
        tables.0.insert(offset, table.clone());
        Ok(table)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (HashMap<u64, Table>, usize)> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
