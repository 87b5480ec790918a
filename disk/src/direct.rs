//! Requests that are one storage operation: they need no task, and no memory that was not there before.
//!
//! Most requests read or write clusters that are mapped, in one piece, with their L2 slice in the cache. Such a request is looked up,
//! started and forgotten in one go; a record in a table that is used again and again tells what to do when the operation completes. Everything
//! else is a task, and so is what is left of an operation that fell short.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use crate::image::Image;
use crate::in_flight::InFlightGuard;
use crate::storage::{Completion, ImageFile, Operation, Ticket};
use crate::tasks::Tasks;
use crate::{Command, DiskError};

/// Whom to tell. Like [`Done`](crate::Done), on this thread.
pub(crate) type Tell = Box<dyn FnOnce(Result<(), DiskError>)>;

/// What a command comes to.
pub(crate) enum Plan {
    /// All of it is this operation, while `guard` keeps the mapping as it is.
    Operation {
        file: ImageFile,
        operation: Operation,
        guard: Option<InFlightGuard>,
    },
    /// It is done.
    Done,
    /// It takes several steps, or may have to wait.
    Steps,
}

/// Requests whose one operation is in flight.
pub(crate) struct DirectRequests {
    tasks: Tasks,
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    requests: Vec<Option<InFlight>>,
    vacant: Vec<usize>,
}

struct InFlight {
    image: Image,
    command: Command,
    /// Where in the image file.
    host: u64,
    guard: Option<InFlightGuard>,
    tell: Tell,
}

impl DirectRequests {
    /// None so far. What falls short goes on as a task.
    pub(crate) fn new(tasks: Tasks) -> Rc<Self> {
        Rc::new(Self {
            tasks,
            table: RefCell::default(),
        })
    }

    /// Starts `command`, whose range was checked, if one storage operation is all of it; otherwise gives it back.
    pub(crate) fn start(self: &Rc<Self>, image: &Image, command: Command, tell: Tell) -> Result<(), (Command, Tell)> {
        match image.plan(&command) {
            Plan::Steps => return Err((command, tell)),
            Plan::Done => tell(Ok(())),
            Plan::Operation { file, operation, guard } => {
                let request = InFlight {
                    image: image.clone(),
                    command,
                    host: operation.offset(),
                    guard,
                    tell,
                };
                let id = self.table.borrow_mut().insert(request);
                file.start(operation, Ticket::of_request(self.clone(), id));
            }
        }
        Ok(())
    }

    /// How many are in flight.
    pub(crate) fn len(&self) -> usize {
        let table = self.table.borrow();
        table.requests.len() - table.vacant.len()
    }
}

impl Table {
    fn insert(&mut self, request: InFlight) -> usize {
        match self.vacant.pop() {
            Some(id) => {
                self.requests[id] = Some(request);
                id
            }
            None => {
                self.requests.push(Some(request));
                self.requests.len() - 1
            }
        }
    }

    fn remove(&mut self, id: usize) -> Option<InFlight> {
        let request = self.requests.get_mut(id)?.take()?;
        self.vacant.push(id);
        Some(request)
    }
}

impl Completion for DirectRequests {
    fn complete(&self, id: usize, result: io::Result<usize>) {
        let Some(request) = self.table.borrow_mut().remove(id) else {
            return;
        };
        // Whoever waits for these clusters may go on, this request included if it has to begin anew.
        drop(request.guard);
        let name = if request.command.modifies() { "write" } else { "read" };
        let (_, length) = request.command.range();
        match result {
            Ok(transferred) if transferred as u64 == length => (request.tell)(Ok(())),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => (request.tell)(Err(DiskError::Io {
                operation: name,
                offset: request.host,
                error,
            })),
            // In place, so what was transferred already may be transferred again.
            Ok(_) | Err(_) => self.tasks.spawn(async move {
                let outcome = request.image.execute(request.command).await;
                (request.tell)(outcome);
            }),
        }
    }
}
