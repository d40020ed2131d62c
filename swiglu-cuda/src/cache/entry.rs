//! An entry: what it is called by, and how its file is laid out.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 32 | the key |
//! | 8 | the length of the body, little-endian |
//! | 32 | SHA-256 of the body |
//! | the length | the body |

use sha2::{Digest as _, Sha256};

use super::Trouble;

const MAGIC: [u8; 8] = *b"swiglu\0\x01";
const HASH: usize = 32;
const HEADER: usize = MAGIC.len() + HASH + 8 + HASH;

/// A cubin of this crate has some 100 KiB. The limit keeps a wrong file from filling the memory.
const LARGEST_BODY: u64 = 64 << 20;
pub(super) const LARGEST_ENTRY: u64 = LARGEST_BODY + HEADER as u64;

/// What an entry is called by: a hash of everything that its body depends on, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    hash: [u8; HASH],
    extension: &'static str,
}

impl Key {
    /// Of machine code that depends on these parts in this order.
    pub(crate) fn of(parts: &[&str]) -> Self {
        Self::with_extension(parts, "cubin")
    }

    /// Of what tuning found, where it depends on these parts in this order.
    pub(crate) fn of_choices(parts: &[&str]) -> Self {
        Self::with_extension(parts, "tuned")
    }

    /// The length of each part is hashed before it: parts divided elsewhere have another key.
    fn with_extension(parts: &[&str], extension: &'static str) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { hash: hash.finalize().into(), extension }
    }

    /// In hexadecimal: no part of a path but a name.
    pub(super) fn file_name(&self) -> String {
        let digits: String = self.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        digits + "." + self.extension
    }
}

pub(super) fn encode(key: &Key, body: &[u8]) -> Result<Vec<u8>, Trouble> {
    let length = body.len() as u64;
    if length > LARGEST_BODY {
        return Err(Trouble::TooLarge { bytes: length, limit: LARGEST_BODY });
    }
    let hash: [u8; HASH] = Sha256::digest(body).into();
    Ok([&MAGIC[..], &key.hash, &length.to_le_bytes(), &hash, body].concat())
}

/// The body, if the bytes are what [`encode`] made of it under this key; else what is wrong with them.
pub(super) fn decode(key: &Key, mut bytes: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or("no room for a header")?;
    let (magic, header) = header.split_at(MAGIC.len());
    let (stored_key, header) = header.split_at(HASH);
    let (length, hash) = header.split_at(8);
    if magic != MAGIC {
        return Err("not an entry of this version");
    }
    if stored_key != key.hash {
        return Err("stored under another key");
    }
    if length != (body.len() as u64).to_le_bytes() {
        return Err("wrong length");
    }
    if hash != Sha256::digest(body).as_slice() {
        return Err("wrong checksum");
    }
    bytes.drain(..HEADER);
    Ok(bytes)
}
