//! A file of text and tensors with a checksum: what checkpoints are kept in. Opened, it is whole or refused.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"LIMBECKC";
/// Of the layout and of what it holds.
const VERSION: u32 = 1;
const DIGEST: usize = 32;

/// Pieces of bytes by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blobs(Vec<Bytes>);

impl Blobs {
    /// Adds a piece; its number.
    pub fn put(&mut self, bytes: Bytes) -> usize {
        self.0.push(bytes);
        self.0.len() - 1
    }
    pub fn get(&self, number: usize) -> Option<&Bytes> {
        self.0.get(number)
    }
}

/// Magic number, version, length of the text, the text (RON: lengths of the blobs, `header`), the blobs, SHA-256 of all before it.
///
/// # Errors
/// A header that cannot be written as RON, in words.
pub fn encode<T: Serialize>(header: &T, blobs: &Blobs) -> Result<Vec<u8>, String> {
    let lengths: Vec<usize> = blobs.0.iter().map(Bytes::len).collect();
    let text = ron::to_string(&(lengths, header)).map_err(|e| e.to_string())?;
    let data: usize = blobs.0.iter().map(Bytes::len).sum();
    let mut out = Vec::with_capacity(MAGIC.len() + 12 + text.len() + data + DIGEST);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    for blob in &blobs.0 {
        out.extend_from_slice(blob);
    }
    let digest = Sha256::digest(&out);
    out.extend_from_slice(&digest);
    Ok(out)
}

/// Header and blobs of what [`encode`] gave.
///
/// # Errors
/// In words: not such a file, another version, cut short or changed.
pub fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<(T, Blobs), String> {
    let cut = || "it is cut short".to_owned();
    let take = |from: usize, length: usize| -> Result<Bytes, String> {
        let end = from.checked_add(length).filter(|end| *end <= bytes.len());
        end.map(|end| bytes.slice(from..end)).ok_or_else(cut)
    };
    if take(0, MAGIC.len())? != MAGIC[..] {
        return Err("it is no checkpoint of Limbeck's".to_owned());
    }
    let mut at = MAGIC.len();
    let version = take(at, 4)?;
    if version != VERSION.to_le_bytes()[..] {
        let found = version.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
        return Err(format!(
            "it has version {found} of the format; this engine ({}) reads version {VERSION}",
            crate::VERSION
        ));
    }
    at += 4;
    let end = bytes.len().checked_sub(DIGEST).ok_or_else(cut)?;
    if Sha256::digest(&bytes[..end])[..] != bytes[end..] {
        return Err("its checksum is wrong: it is cut short or was changed".to_owned());
    }
    let length = take(at, 8)?;
    at += 8;
    let length = length
        .iter()
        .rev()
        .fold(0u64, |n, b| n << 8 | u64::from(*b));
    let length = usize::try_from(length).map_err(|_| cut())?;
    let text = take(at, length)?;
    at += length;
    let text = std::str::from_utf8(&text).map_err(|_| "its text is not UTF-8".to_owned())?;
    let (lengths, header): (Vec<usize>, T) =
        ron::from_str(text).map_err(|e| format!("its text cannot be read: {e}"))?;
    let mut blobs = Blobs::default();
    for length in lengths {
        blobs.put(take(at, length)?);
        at += length;
    }
    if at != end {
        return Err("its pieces do not add up to its length".to_owned());
    }
    Ok((header, blobs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_any_change_is_noticed() {
        let mut blobs = Blobs::default();
        blobs.put(Bytes::from_static(b"abc"));
        blobs.put(Bytes::new());
        let header = (f64::INFINITY, 0.1f64 + 0.2, "words".to_owned());
        let file = encode(&header, &blobs).unwrap();
        let (read, pieces): ((f64, f64, String), Blobs) = decode(&file.clone().into()).unwrap();
        assert_eq!((read, pieces), (header, blobs));
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 4;
            assert!(decode::<(f64, f64, String)>(&changed.into()).is_err());
            let cut = file[..at].to_vec();
            assert!(decode::<(f64, f64, String)>(&cut.into()).is_err());
        }
        let mut newer = file;
        newer[8] = 9;
        let said = decode::<(f64, f64, String)>(&newer.into()).unwrap_err();
        assert!(said.contains("version 9"), "{said}");
    }
}
