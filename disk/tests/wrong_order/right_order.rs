//! All steps in their order, on an image that notes what it is told.

#![deny(unused_must_use)]

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use disk::five_steps::{Allocated, Clusters, Image};

#[derive(Default)]
struct Notes(RefCell<Vec<String>>);

impl Image for Notes {
    type Content = &'static str;
    type Error = Infallible;

    async fn fill(allocated: Allocated<Self>, content: &'static str) -> Result<Allocated<Self>, Infallible> {
        allocated.image().0.borrow_mut().push(format!("write {content}"));
        Ok(allocated)
    }

    fn give_back(self: &Rc<Self>, clusters: Clusters) {
        self.0.borrow_mut().push(format!("give back {}", clusters.first));
    }

    fn quarantine(&self, references: &[Clusters]) {
        self.0.borrow_mut().push(format!("release {}", references[0].first));
    }
}

async fn right_order(image: Rc<Notes>) -> Result<(), Infallible> {
    let new = |first| Allocated::new(image.clone(), Clusters { first, count: 1 }, false);
    let filled = new(7).write("data").await?;
    let unlinked = filled.linked([Clusters { first: 3, count: 1 }].into_iter().collect());
    unlinked.release();
    // What goes no further is given back.
    drop(new(8).write("more").await?);
    Ok(())
}

fn main() {
    let image = Rc::new(Notes::default());
    let outcome = pin!(right_order(image.clone())).poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(outcome, Poll::Ready(Ok(()))));
    assert_eq!(*image.0.borrow(), ["write data", "release 3", "write more", "give back 8"]);
}
