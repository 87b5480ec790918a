//! Opening images by name: the file, its lock, its format, and the files below it.

use std::cell::RefCell;
use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::cache_file::{CacheFile, CacheFileError};
use crate::disk::Corruption;
use crate::image::Image;
use crate::lock::{self, LockError};
use crate::options::{CacheMode, CacheSize, DetectZeroes, Discard};
use crate::qcow2::cache_memory::{CacheError, Identity, LastingMemory};
use crate::qcow2::header::{BackingReference, Header, HeaderError, MAGIC, MAX_LENGTH};
use crate::qcow2::{self, CachePlan, Opening};
use crate::raw::Raw;
use crate::storage::{AlignedStorage, ImageFile, Storage, file_length};
use crate::tasks::Tasks;
use crate::{Buffer, DiskError};

/// How long dirty metadata waits by default; as long as ext4's.
const WRITE_BACK_AFTER: Duration = Duration::from_secs(5);

/// The longest chain of backing files.
pub(crate) const MAX_CHAIN: usize = 64;

/// The format of an image. It is always said, never guessed: a guest could write another format's header into a raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// qcow2, version 2 or 3.
    Qcow2,
    /// The bytes of the disk.
    Raw,
}

/// Which image to open, and how.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The image file or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Refuse writes, and share the image with other readers.
    pub read_only: bool,
    /// When writes reach the disk below.
    pub cache: CacheMode,
    /// What becomes of discards.
    pub discard: Discard,
    /// Whether writes of zeros are stored as such.
    pub detect_zeroes: DetectZeroes,
    /// The size of the metadata cache. By default as much as the image can use, and at most what 256 GiB with clusters of 64 KiB need.
    pub cache_size: Option<CacheSize>,
    /// Keep the metadata cache in memory that ends with this process. A killed process then loses what was not flushed; it is there to
    /// measure what the other way costs.
    pub private_cache: bool,
    /// How long dirty metadata may wait for a flush before it is written back by itself.
    pub write_back_after: Duration,
    /// The id or name of an internal snapshot to read in place of what the disk holds now; only with `read_only`.
    pub snapshot: Option<String>,
}

impl OpenOptions {
    /// The image at `path`, writable, with the defaults that QEMU has.
    pub fn new(path: impl Into<PathBuf>, format: Format) -> Self {
        Self {
            path: path.into(),
            format,
            read_only: false,
            cache: CacheMode::default(),
            discard: Discard::default(),
            detect_zeroes: DetectZeroes::default(),
            cache_size: None,
            private_cache: false,
            write_back_after: WRITE_BACK_AFTER,
            snapshot: None,
        }
    }
}

/// Why an image could not be opened. Its text names the file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct OpenError {
    /// The image, or the backing file in its chain.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: Box<OpenCause>,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum OpenCause {
    /// The file cannot be opened or read.
    #[error("{0}")]
    File(io::Error),
    /// It is a directory, a socket or the like.
    #[error("Neither a regular file nor a block device")]
    NotAFile,
    /// Somebody else uses it.
    #[error("{0}")]
    Lock(LockError),
    /// The header is not one, or not one that is supported.
    #[error("{0}")]
    Header(HeaderError),
    /// A table contradicts the format.
    #[error("The image is corrupt: {0}")]
    Corrupt(Corruption),
    /// The file ends before something that it refers to.
    #[error("The file of {length} bytes is truncated: its {structure} ends at {end}")]
    Truncated {
        /// What is missing.
        structure: &'static str,
        /// Where it would end, in bytes.
        end: u64,
        /// Where the file ends, in bytes.
        length: u64,
    },
    /// Incompatible feature bit 1.
    #[error("The image is marked corrupt (incompatible feature bit 1); it can only be opened read-only")]
    MarkedCorrupt,
    /// Snapshots are read, not written.
    #[error("A snapshot can only be opened read-only")]
    SnapshotForWriting,
    /// There is no such snapshot, or the format has none.
    #[error("There is no snapshot with the id or name \"{0}\"")]
    NoSuchSnapshot(String),
    /// A killed process left metadata behind, which only a writer can put into the image.
    #[error("A killed process left the image in need of recovery; open it for writing once")]
    NeedsRecovery,
    /// The metadata that a killed process left behind is damaged, or not this image's.
    #[error("The metadata that a killed process left behind cannot be used: {0}")]
    Cache(CacheError),
    /// There is a file with metadata that a killed process left behind, and it is damaged, or not this image's.
    #[error(
        "{} holds metadata that a killed process left behind, but {reason}. \
         If the image was replaced or restored since, remove that file; what the process wrote last is lost with it", path.display()
    )]
    ForeignCache {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: CacheError,
    },
    /// The file with the metadata that a killed process left behind cannot be used.
    #[error("{0}")]
    CacheFile(CacheFileError),
    /// There is no memory for the metadata cache.
    #[error("Cannot reserve memory for the metadata cache on tmpfs: {0}")]
    CacheMemory(io::Error),
    /// The file system has no O_DIRECT.
    #[error("The file system cannot go past the page cache (O_DIRECT), as cache=none and cache=directsync ask")]
    NoDirectIo,
    /// Reading the tables failed.
    #[error("{0}")]
    Storage(DiskError),
    /// The backing file is named in a way that is not supported.
    #[error("Backing file name \"{0}\" is not a path of a file, which is all that is supported")]
    BackingName(String),
    /// The format of the backing file is not one that is supported.
    #[error("Backing format \"{0}\" is not supported; qcow2 and raw are")]
    BackingFormat(String),
    /// The image does not say what format its backing file has.
    #[error(
        "The format of the backing file \"{0}\" is not recorded, and guessing it is unsafe; \
         record it with `qemu-img rebase -u -F FORMAT -b FILE IMAGE`"
    )]
    BackingFormatMissing(String),
    /// The chain of backing files leads back to a file that is part of it.
    #[error("The chain of backing files comes back to this file")]
    Cycle,
    /// Too many backing files.
    #[error("The chain of backing files is longer than {MAX_CHAIN}")]
    ChainTooLong,
}

impl From<LockError> for OpenCause {
    fn from(error: LockError) -> Self {
        OpenCause::Lock(error)
    }
}

impl From<HeaderError> for OpenCause {
    fn from(error: HeaderError) -> Self {
        OpenCause::Header(error)
    }
}

impl From<DiskError> for OpenCause {
    fn from(error: DiskError) -> Self {
        OpenCause::Storage(error)
    }
}

/// Opens images for one engine.
pub(crate) struct Opener<'a> {
    pub tasks: &'a Tasks,
    /// The files of images that were opened, by which their locks are given up.
    pub locked: &'a RefCell<Vec<File>>,
    /// Makes a storage of a file.
    pub storage: &'a dyn Fn(File) -> Rc<dyn Storage>,
    /// Runs an asynchronous step to its end.
    pub run: &'a dyn Fn(OpenTask) -> Result<Image, OpenCause>,
}

/// The asynchronous part of opening an image.
pub(crate) type OpenTask = std::pin::Pin<Box<dyn Future<Output = Result<Image, OpenCause>>>>;

impl Opener<'_> {
    /// Opens an image and the chain below it.
    pub(crate) fn open(&self, options: &OpenOptions) -> Result<Image, OpenError> {
        self.open_link(options, &mut Vec::new())
    }

    /// Opens one link of a chain; `above` are the device and inode numbers of those that lead here.
    fn open_link(&self, options: &OpenOptions, above: &mut Vec<(u64, u64)>) -> Result<Image, OpenError> {
        let fail = |cause| OpenError {
            path: options.path.clone(),
            cause: Box::new(cause),
        };
        let file = open_file(options, above).map_err(fail)?;
        let same = file.try_clone().map_err(|error| fail(OpenCause::File(error)))?;
        self.locked.borrow_mut().push(same);
        match options.format {
            Format::Raw => {
                if let Some(wanted) = &options.snapshot {
                    return Err(fail(OpenCause::NoSuchSnapshot(wanted.clone())));
                }
                let file = self.image_file(file, options).map_err(fail)?;
                let raw = Raw::new(file).map_err(|error| fail(error.into()))?;
                Ok(Image::Raw(Rc::new(raw)))
            }
            Format::Qcow2 => {
                let header = read_header(&file).map_err(fail)?;
                let backing = match &header.backing {
                    None => None,
                    Some(reference) => {
                        let options = backing_options(options, reference).map_err(fail)?;
                        Some(self.open_link(&options, above)?)
                    }
                };
                let cache = plan_cache(&file, &header, options).map_err(fail)?;
                let opening = Opening {
                    tasks: self.tasks.clone(),
                    file: self.image_file(file, options).map_err(fail)?,
                    header,
                    backing,
                    read_only: options.read_only,
                    unmap: options.discard == Discard::Unmap,
                    snapshot: options.snapshot.clone(),
                    cache,
                };
                let open = async move { qcow2::open(opening).await.map(Image::Qcow2) };
                (self.run)(Box::pin(open)).map_err(fail)
            }
        }
    }
}

impl Opener<'_> {
    /// The file, past the page cache if that is asked for and possible.
    fn image_file(&self, file: File, options: &OpenOptions) -> Result<ImageFile, OpenCause> {
        if !options.cache.is_direct() {
            return Ok(ImageFile::new((self.storage)(file)));
        }
        let alignment = direct_alignment(&file)?;
        let length = file_length(&file).map_err(OpenCause::File)?;
        if !length.is_multiple_of(alignment) {
            if options.read_only || options.format == Format::Raw {
                let path = options.path.display();
                tracing::warn!(%path, length, alignment, "a file of this length needs the page cache; cache=none is ignored");
                return Ok(ImageFile::new((self.storage)(file)));
            }
            // What is beyond the end of a qcow2 file reads as zeros, so that is what it is filled up with.
            file.set_len(length.next_multiple_of(alignment))
                .map_err(OpenCause::File)?;
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| OpenCause::File(error.into()))?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT).map_err(|_| OpenCause::NoDirectIo)?;
        let aligned = AlignedStorage::new((self.storage)(file), self.tasks.clone(), alignment);
        Ok(ImageFile::new(Rc::new(aligned)))
    }
}

/// What transfers past the page cache must be multiples of, in bytes (statx(2), STATX_DIOALIGN).
fn direct_alignment(file: &File) -> Result<u64, OpenCause> {
    /// For kernels and file systems that do not say.
    const USUAL: u64 = 4096;
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::from_bits_retain(0x2000));
    let alignment = found.map_or(0, |found| found.stx_dio_mem_align.max(found.stx_dio_offset_align));
    Ok(if alignment.is_power_of_two() {
        u64::from(alignment).max(512)
    } else {
        USUAL
    })
}

/// Where the metadata cache of an image lies, and what a killed process left there.
fn plan_cache(file: &File, header: &Header, options: &OpenOptions) -> Result<CachePlan, OpenCause> {
    let path = options.path.display();
    let private = CachePlan {
        bytes: options
            .cache_size
            .map_or_else(|| qcow2::default_cache_bytes(header), |size| size.bytes() as usize),
        identity: Identity::default(),
        left_behind: None,
        lasting: None,
    };
    if header.version < 3 {
        if !options.read_only {
            tracing::warn!(%path, "version 2 images have no dirty bit, so metadata is written through, which is slow");
        }
        return Ok(private);
    }
    let Some(cache_file) = CacheFile::of(file).map_err(OpenCause::File)? else {
        if !options.read_only {
            tracing::warn!(%path, "there is no tmpfs for a metadata cache, so metadata is written through, which is slow");
        }
        return Ok(private);
    };
    if options.private_cache && !cache_file.exists() {
        return Ok(CachePlan {
            lasting: Some(Rc::new(OwnMemory)),
            ..private
        });
    }
    let left_behind = match (cache_file.exists(), header.is_dirty()) {
        (false, _) => None,
        (true, true) => Some(cache_file.read().map_err(OpenCause::CacheFile)?),
        (true, false) => {
            // Only a tool that repaired the image clears the bit of one that was not closed.
            tracing::warn!(%path, cache = %cache_file.path().display(), "ignoring metadata that was left behind before the image was repaired");
            None
        }
    };
    let identity = cache_file.identity();
    if let Some(bytes) = &left_behind
        && let Err(reason) = qcow2::check_left_behind(bytes, identity, header)
    {
        let path = cache_file.path().to_owned();
        return Err(OpenCause::ForeignCache { path, reason });
    }
    Ok(CachePlan {
        identity,
        left_behind,
        lasting: Some(Rc::new(cache_file)),
        ..private
    })
}

/// Memory that does not outlive this process.
struct OwnMemory;

impl LastingMemory for OwnMemory {
    fn make(&self, length: usize) -> io::Result<Buffer> {
        Ok(Buffer::zeroed(length))
    }

    fn remove(&self) {}
}

fn open_file(options: &OpenOptions, above: &mut Vec<(u64, u64)>) -> Result<File, OpenCause> {
    let file = FileOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(&options.path)
        .map_err(OpenCause::File)?;
    let metadata = file.metadata().map_err(OpenCause::File)?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(OpenCause::NotAFile);
    }
    let identity = (metadata.dev(), metadata.ino());
    if above.contains(&identity) {
        return Err(OpenCause::Cycle);
    }
    if above.len() == MAX_CHAIN {
        return Err(OpenCause::ChainTooLong);
    }
    above.push(identity);
    lock::lock(&file, options.read_only)?;
    Ok(file)
}

pub(crate) fn read_header(file: &File) -> Result<Header, OpenCause> {
    let mut bytes = vec![0; MAX_LENGTH];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(OpenCause::File(error)),
        }
    }
    Ok(Header::parse(&bytes[..length])?)
}

/// Where a backing file is, and its format. It is used as the image above it is.
pub(crate) fn backing_options(above: &OpenOptions, reference: &BackingReference) -> Result<OpenOptions, OpenCause> {
    let name = reference.name.strip_prefix("file:").unwrap_or(&reference.name);
    if name.starts_with("json:") || name.contains("://") {
        return Err(OpenCause::BackingName(name.to_owned()));
    }
    let path = above.path.parent().unwrap_or(Path::new("")).join(name);
    let format = match reference.format.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some("raw" | "file" | "host_device") => Format::Raw,
        Some(other) => return Err(OpenCause::BackingFormat(other.to_owned())),
        // Old tools did not record it. A qcow2 header says what it is; anything else would be a guess.
        None if begins_with_magic(&path) => Format::Qcow2,
        None => return Err(OpenCause::BackingFormatMissing(name.to_owned())),
    };
    Ok(OpenOptions {
        path,
        format,
        read_only: true,
        snapshot: None,
        ..above.clone()
    })
}

fn begins_with_magic(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut magic, 0))
        .is_ok()
        && u32::from_be_bytes(magic) == MAGIC
}
