//! Making an overlay empty: what was in it is in its backing file now.

use std::rc::Rc;

use super::Qcow2;
use crate::DiskError;

impl Qcow2 {
    /// Gives up all that is mapped, so that the backing file shows everywhere; without one the disk reads as zeros. Either all of it
    /// happens or nothing does.
    pub(crate) async fn make_empty(self: &Rc<Self>) -> Result<(), DiskError> {
        let _alone = self.alone().await?;
        let old = self.l1.borrow().clone();
        self.switch_l1(vec![0; old.len()], self.capacity()).await?;
        self.lower_tree(&old).await;
        self.write_through().await
    }
}
