//! How an image and its metadata cache know each other: a random token in a header extension of our own.
//!
//! An inode number, and the birth of the file behind it, stay the same when another image is copied over this one. So each time that an
//! image is opened for writing its header gets another token, and the cache that is made next records it. The extension has the
//! type 0x73706e64 ("spnd") and 16 bytes; other programs keep extensions that they do not know (qcow2 spec, "Header extensions").
//!
//! Nothing in the header is moved for it. Where what follows the last extension is in use, which in images that `qemu-img` made
//! with a backing file is the name of that file, there is no token, and the cache is known by the file alone.

use super::header::Header;
use crate::DiskError;
use crate::storage::ImageFile;

/// A random number that is never given twice.
pub(crate) type Token = [u8; 16];

/// The type of the extension.
pub(super) const EXTENSION: u32 = 0x7370_6e64;

/// Bytes of the extension, its type and length included, and of the marker behind it.
pub(super) const EXTENSION_BYTES: u64 = 8 + 16 + 8;

/// Where the token is, or could be. In bytes of the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// An extension holds it.
    Found {
        /// Where it lies.
        at: u64,
        /// What it is.
        token: Token,
    },
    /// There is none, but room for it.
    Room {
        /// Where the end of the extensions is marked.
        marker: u64,
    },
    /// There is no room.
    Nowhere,
}

impl TokenPlace {
    /// The token, if the header has one.
    pub(super) fn found(self) -> Option<Token> {
        match self {
            TokenPlace::Found { token, .. } => Some(token),
            TokenPlace::Room { .. } | TokenPlace::Nowhere => None,
        }
    }
}

/// Puts `token` into the header, if there is room. No cache may be left that knows the image by the one before: of a token
/// that is torn by a power loss nobody knows what it was.
pub(super) async fn write(file: &ImageFile, header: &mut Header, token: Token) -> Result<(), DiskError> {
    let at = match header.token {
        TokenPlace::Nowhere => return Ok(()),
        TokenPlace::Found { at, .. } => at,
        TokenPlace::Room { marker } => {
            // Behind the marker nobody reads. What turns the marker into an extension are eight bytes within one sector.
            let mut behind = token.to_vec();
            behind.extend([0; 8]);
            file.write_bytes(marker + 8, &behind).await?;
            file.sync().await?;
            let mut head = EXTENSION.to_be_bytes().to_vec();
            head.extend((token.len() as u32).to_be_bytes());
            file.write_bytes(marker, &head).await?;
            marker + 8
        }
    };
    file.write_bytes(at, &token).await?;
    header.token = TokenPlace::Found { at, token };
    Ok(())
}
