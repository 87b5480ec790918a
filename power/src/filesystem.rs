//! The file system with the one file on it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};

use crate::recording::{Change, Event, Mark, Recording};

/// The longest that the file may get, in bytes.
pub const MAX_LENGTH: u64 = 1 << 30;

const FILE: INodeNo = INodeNo(2);
/// Lengths change without the kernel being asked.
const NO_TIME: Duration = Duration::ZERO;
const BLOCK: u32 = 512;

/// fallocate's modes (linux/falloc.h).
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;

/// Says how far the user of the file has come.
type Observer = Box<dyn Fn() -> Mark + Send + Sync>;

/// A mounted file that is recorded.
pub struct RecordedFile {
    path: PathBuf,
    content: Arc<Content>,
    session: Option<BackgroundSession>,
}

/// The file system cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[error("Cannot mount a FUSE file system at {}: {error} (it takes /dev/fuse, and root or fusermount3)", path.display())]
pub struct MountError {
    path: PathBuf,
    error: io::Error,
}

struct Content {
    name: String,
    observer: Observer,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    recording: Recording,
}

impl RecordedFile {
    /// Mounts a file called `name` at the folder `at`, which holds `content`. `observer` is asked at each event; it must not touch
    /// the file.
    ///
    /// # Errors
    /// If the file system cannot be mounted.
    pub fn mount(
        at: &Path,
        name: &str,
        content: Vec<u8>,
        observer: impl Fn() -> Mark + Send + Sync + 'static,
    ) -> Result<Self, MountError> {
        let content = Arc::new(Content {
            name: name.to_owned(),
            observer: Box::new(observer),
            state: Mutex::new(State {
                bytes: content.clone(),
                recording: Recording {
                    initial: content,
                    ..Recording::default()
                },
            }),
        });
        let mut options = Config::default();
        options.mount_options = vec![MountOption::FSName("spindle-power".to_owned())];
        let session = fuser::spawn_mount(Recorder(content.clone()), at, &options).map_err(|error| MountError {
            path: at.to_owned(),
            error,
        })?;
        Ok(Self {
            path: at.join(name),
            content,
            session: Some(session),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts, and returns what was recorded. Nobody has the file open any more.
    ///
    /// # Errors
    /// If it does not unmount.
    pub fn finish(mut self) -> io::Result<Recording> {
        if let Some(session) = self.session.take() {
            session.umount_and_join()?;
        }
        let mut state = self.content.lock();
        state.recording.last = (self.content.observer)();
        Ok(std::mem::take(&mut state.recording))
    }
}

impl Content {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self) -> FileAttr {
        let length = self.lock().bytes.len() as u64;
        FileAttr {
            ino: FILE,
            size: length,
            blocks: length.div_ceil(u64::from(BLOCK)),
            kind: FileType::RegularFile,
            perm: 0o600,
            ..FOLDER
        }
    }

    /// Records a change that `make` has made.
    fn change(&self, change: Change, make: impl FnOnce(&mut Vec<u8>)) {
        let mark = (self.observer)();
        let mut state = self.lock();
        make(&mut state.bytes);
        state.recording.events.push(Event { change, mark });
    }
}

const FOLDER: FileAttr = FileAttr {
    ino: INodeNo::ROOT,
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::Directory,
    perm: 0o700,
    nlink: 1,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK,
    flags: 0,
};

struct Recorder(Arc<Content>);

impl Filesystem for Recorder {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == OsStr::new(&self.0.name) {
            reply.entry(&NO_TIME, &owned(self.0.attributes(), request), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match ino {
            FILE => reply.attr(&NO_TIME, &owned(self.0.attributes(), request)),
            INodeNo::ROOT => reply.attr(&NO_TIME, &owned(FOLDER, request)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match size {
            _ if ino != FILE => return reply.error(Errno::EPERM),
            Some(size) if size > MAX_LENGTH => return reply.error(Errno::EFBIG),
            Some(size) => self
                .0
                .change(Change::Resize(size), |bytes| bytes.resize(size as usize, 0)),
            None => {}
        }
        reply.attr(&NO_TIME, &owned(self.0.attributes(), request));
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino == FILE {
            // No page cache in between: each write comes here, and when it is made.
            reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        } else {
            reply.error(Errno::EISDIR);
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock();
        let start = state.bytes.len().min(offset as usize);
        let end = state.bytes.len().min(start + size as usize);
        reply.data(&state.bytes[start..end]);
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let end = offset.saturating_add(data.len() as u64);
        if end > MAX_LENGTH {
            return reply.error(Errno::EFBIG);
        }
        let change = Change::Write {
            offset,
            data: data.to_vec(),
        };
        self.0.change(change, |bytes| {
            if bytes.len() < end as usize {
                bytes.resize(end as usize, 0);
            }
            bytes[offset as usize..end as usize].copy_from_slice(data);
        });
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.change(Change::Sync, |_| {});
        reply.ok();
    }

    /// A close makes nothing durable.
    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if ![PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE].contains(&mode) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.0.change(Change::Zero { offset, length }, |bytes| {
            let end = bytes.len().min(offset.saturating_add(length) as usize);
            let start = end.min(offset as usize);
            bytes[start..end].fill(0);
        });
        reply.ok();
    }
}

/// As the user sees it who asks: whoever mounted it is the only one who can.
fn owned(attributes: FileAttr, request: &Request) -> FileAttr {
    FileAttr {
        uid: request.uid(),
        gid: request.gid(),
        ..attributes
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn writes_and_syncs_of_a_file_are_recorded_in_their_order() {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("left out: this machine has no /dev/fuse");
            return;
        }
        let folder = std::env::temp_dir().join(format!("spindle-power-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let recorded = match RecordedFile::mount(&folder, "a", vec![7; 1024], || Mark {
            issued: 3,
            completed: 2,
        }) {
            Ok(recorded) => recorded,
            Err(error) => {
                eprintln!("left out: {error}");
                return;
            }
        };
        let file = File::options().read(true).write(true).open(recorded.path()).unwrap();

        file.write_all_at(&[1; 600], 512).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 10], 2000).unwrap();
        let mut bytes = vec![0; 2010];
        file.read_exact_at(&mut bytes, 0).unwrap();
        drop(file);
        let recording = recorded.finish().unwrap();
        std::fs::remove_dir(&folder).unwrap();

        assert_eq!(
            (bytes[0], bytes[512], bytes[1111], bytes[1112], bytes[2009]),
            (7, 1, 1, 0, 2)
        );
        assert_eq!(recording.initial, vec![7; 1024]);
        let changes: Vec<&Change> = recording.events.iter().map(|event| &event.change).collect();
        assert_eq!(
            changes,
            [
                &Change::Write {
                    offset: 512,
                    data: vec![1; 600]
                },
                &Change::Sync,
                &Change::Write {
                    offset: 2000,
                    data: vec![2; 10]
                },
            ]
        );
        assert!(recording.events.iter().all(|event| event.mark.issued == 3));
    }
}
