//! Files mapped into memory, and letting go of the pages that were read: a model larger than memory is then looked at tensor
//! by tensor. Which bytes lie in a map is known here, so that everyone else may simply say that they are done.

use bytes::Bytes;
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    sync::{Mutex, MutexGuard},
};

/// Start address and length of every map that lives.
static MAPS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// A panic cannot happen while the lock is held: the table is whole.
fn maps() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    MAPS.lock().unwrap_or_else(|e| e.into_inner())
}

struct FileMap(Mmap);

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for FileMap {
    /// Before the map itself goes, so that the table never names memory that is not mapped.
    fn drop(&mut self) {
        maps().remove(&(self.0.as_ptr() as usize));
    }
}

/// Maps a file that is not empty, read-only.
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    #[allow(unsafe_code)] // the one memory map of the library
    // SAFETY: the map is read-only and private to us. The remaining hazard of `Mmap::map` is another process
    // changing or truncating the file meanwhile; `read_model` documents it, and our own writer only ever
    // replaces files by renaming, which leaves existing maps untouched. Nothing but bytes is read from it:
    // any content is a valid value.
    let map = unsafe { Mmap::map(file) }?;
    maps().insert(map.as_ptr() as usize, map.len());
    Ok(Bytes::from_owner(FileMap(map)))
}

/// Gives the memory of bytes in a mapped file back to the system; they are read from the file again when they are next looked
/// at. Nothing happens to bytes that lie elsewhere.
pub(crate) fn let_go(bytes: &[u8]) {
    let start = bytes.as_ptr() as usize;
    let table = maps();
    let inside = table
        .range(..=start)
        .next_back()
        .is_some_and(|(from, len)| start - from + bytes.len() <= *len);
    drop(table);
    // The caller's borrow keeps the map alive from here on.
    if inside {
        drop_pages(start, bytes.len());
    }
}

#[cfg(unix)]
fn drop_pages(start: usize, len: usize) {
    #[allow(unsafe_code)] // two libc calls about pages of the map above
    // SAFETY: `sysconf` takes and gives integers. `madvise` gets whole pages of one live map: the range lies inside it, and
    // rounding outwards stays inside because a map starts on a page and owns its last page to the end. The map is a shared,
    // read-only view of a file, so dropped pages hold nothing that is not in the file: whoever reads them, now or
    // later, gets the same bytes from there. Failure only keeps the memory.
    unsafe {
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096);
        let from = start / page * page;
        libc::madvise(
            from as *mut libc::c_void,
            (start + len).next_multiple_of(page) - from,
            libc::MADV_DONTNEED,
        );
    }
}

#[cfg(not(unix))]
fn drop_pages(_start: usize, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_let_go_reads_the_same_and_other_bytes_are_left_alone() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let map = map(&file).unwrap();
        assert!(map[..] == content[..]);
        // Neither end on a page, then the whole.
        let part = map.slice(5_000..70_001);
        let_go(&part);
        assert!(part[..] == content[5_000..70_001]);
        let_go(&map);
        assert!(map[..] == content[..]);
        // Memory of our own would lose its content.
        let own = content.clone();
        let_go(&own);
        assert_eq!(own, content);
        let_go(&[]);
    }

    #[test]
    fn a_map_that_is_gone_is_not_in_the_table() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let map = map(&file).unwrap();
        let at = map.as_ptr() as usize;
        let half = map.slice(..5_000);
        drop(map);
        assert!(maps().contains_key(&at), "a slice keeps it");
        drop(half);
        // Another test's map may take the same place, but not with this length.
        assert_ne!(maps().get(&at), Some(&10_000));
    }
}
