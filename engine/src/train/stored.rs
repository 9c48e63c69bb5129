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
    let file = bytes.len() as u64;
    let length = text_length(bytes.get(..START).unwrap_or(bytes), file)?;
    let end = bytes.len() - DIGEST;
    if Sha256::digest(&bytes[..end])[..] != bytes[end..] {
        return Err("its checksum is wrong: it is cut short or was changed".to_owned());
    }
    let mut at = START + length;
    let (header, lengths) = text(&bytes[START..at], file)?;
    let mut blobs = Blobs::default();
    for length in lengths {
        blobs.put(bytes.slice(at..at + length));
        at += length;
    }
    Ok((header, blobs))
}

/// The header alone, of a file of `length` bytes: nothing behind the text is read, so the checksum, which is over all of it, is not looked at. Who
/// goes on from the file [`decode`]s it.
///
/// # Errors
/// As of [`decode`], but for bytes that were changed where a file of that length has them.
pub fn decode_header<T: DeserializeOwned>(
    mut file: impl std::io::Read,
    length: u64,
) -> Result<T, String> {
    let mut start = Vec::with_capacity(START);
    let mut take = |bytes: u64, into: &mut Vec<u8>| {
        let mut part = std::io::Read::take(&mut file, bytes);
        std::io::Read::read_to_end(&mut part, into).map_err(|e| e.to_string())
    };
    take(START as u64, &mut start)?;
    let characters = text_length(&start, length)?;
    let mut read = Vec::new();
    if take(characters as u64, &mut read)? < characters {
        return Err(CUT.to_owned());
    }
    text(&read, length).map(|(header, _)| header)
}

/// Bytes before the text.
const START: usize = MAGIC.len() + 4 + 8;
const CUT: &str = "it is cut short";

/// How long the text is, by the bytes before it; it fits into a file of so many bytes, and so does the checksum.
fn text_length(start: &[u8], file: u64) -> Result<usize, String> {
    let cut = || CUT.to_owned();
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let (magic, rest) = start.split_at_checked(MAGIC.len()).ok_or_else(cut)?;
    if magic != MAGIC {
        return Err("it is no checkpoint of Limbeck's".to_owned());
    }
    let (version, length) = rest.split_at_checked(4).ok_or_else(cut)?;
    let found = number(version);
    if found != u64::from(VERSION) {
        return Err(format!(
            "it has version {found} of the format; this engine ({}) reads version {VERSION}",
            crate::VERSION
        ));
    }
    if length.len() < 8 {
        return Err(cut());
    }
    let length = number(length);
    let room = file.checked_sub((START + DIGEST) as u64);
    let fits = room.is_some_and(|room| length <= room);
    usize::try_from(length)
        .ok()
        .filter(|_| fits)
        .ok_or_else(cut)
}

/// Header and lengths of the blobs, which add up to what a file of so many bytes has behind the text.
fn text<T: DeserializeOwned>(text: &[u8], file: u64) -> Result<(T, Vec<usize>), String> {
    let read = std::str::from_utf8(text).map_err(|_| "its text is not UTF-8".to_owned())?;
    let (lengths, header): (Vec<usize>, T) =
        ron::from_str(read).map_err(|e| format!("its text cannot be read: {e}"))?;
    let sum = lengths
        .iter()
        .try_fold(0u64, |sum, length| sum.checked_add(*length as u64));
    let behind = file.checked_sub((START + text.len() + DIGEST) as u64);
    if sum.is_none() || sum != behind {
        return Err("its pieces do not add up to its length".to_owned());
    }
    Ok((header, lengths))
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
        let whole = file.len() as u64;
        let head = START + text_length(&file, whole).unwrap();
        // Nothing behind the text is asked for.
        let alone: (f64, f64, String) = decode_header(&file[..head], whole).unwrap();
        assert_eq!(alone.2, "words");
        for cut in 0..head {
            assert!(decode_header::<(f64, f64, String)>(&file[..cut], whole).is_err());
        }
        for length in (0..whole).chain([whole + 1, u64::MAX]) {
            assert!(decode_header::<(f64, f64, String)>(&file[..], length).is_err());
        }
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
