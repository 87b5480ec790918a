//! Block status: where the bytes of the disk lie, this image's and those of the backing files below it.

use std::ops::Range;
use std::rc::Rc;

use super::Qcow2;
use super::mapping::Kind;
use crate::DiskError;
use crate::block_status::{BlockMap, ExtentKind};

impl Qcow2 {
    /// Adds to `map`, which ends where `range` begins, how these bytes are stored. `depth` is this image's place in the chain.
    ///
    /// Requests that change the mapping meanwhile do not wait for this: each extent was true at some moment, and
    /// whatever had completed before is in it.
    pub(crate) async fn map(
        self: &Rc<Self>,
        range: Range<u64>,
        depth: u32,
        map: &mut BlockMap,
    ) -> Result<(), DiskError> {
        while map.end() < range.end && map.may_go_on() {
            let start = map.end();
            let extent = self.lookup(start, range.end - start).await?;
            match (extent.kind, &self.backing) {
                (Kind::Data { host, .. }, _) => map.push(extent.length, ExtentKind::Data, depth, Some(host)),
                (Kind::Zero { host }, _) => map.push(extent.length, ExtentKind::Zero, depth, host),
                (Kind::Compressed { .. }, _) => map.push_compressed(extent.length, depth),
                (Kind::Unallocated, None) => map.push(extent.length, ExtentKind::Unallocated, depth, None),
                (Kind::Unallocated, Some(backing)) => {
                    let end = start + extent.length;
                    let backed = end.min(backing.capacity()).max(start);
                    backing.map(start..backed, depth + 1, map).await?;
                    if map.end() < backed {
                        return Ok(());
                    }
                    map.push(end - backed, ExtentKind::Unallocated, depth, None);
                }
            }
        }
        Ok(())
    }
}
