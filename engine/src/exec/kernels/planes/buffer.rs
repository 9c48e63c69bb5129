//! Memory for planes and packed weights that begins where a cache line does. A vector of 16 floats that straddles two lines costs two
//! loads, and an allocator's large blocks begin 16 bytes into one: then every vector would.

#![allow(unsafe_code)] // lines are seen as the floats they are made of

use std::ops::{Deref, DerefMut};

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// Floats, the first at the beginning of a cache line.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    pub fn zeros(len: usize) -> Self {
        Self {
            lines: vec![Line([0.0; LINE]); len.div_ceil(LINE)],
            len,
        }
    }

    /// Floats that it can hold without growing.
    pub fn capacity(&self) -> usize {
        self.lines.capacity() * LINE
    }

    /// Makes it `len` floats long, which hold anything.
    pub fn hold(&mut self, len: usize) {
        let lines = len.div_ceil(LINE);
        if lines > self.lines.capacity() {
            // Nothing of what it held is moved.
            self.lines = Vec::new();
        }
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0.0; LINE]));
        }
        self.len = len;
    }

    pub fn as_slice(&self) -> &[f32] {
        self
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        self
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        debug_assert!(self.len <= self.lines.len() * LINE);
        // SAFETY: `len` floats are there, in `⌈len / 16⌉` or more lines that are arrays of initialised floats without anything in
        // between (repr(C), 64 bytes of content in 64 bytes); an empty vector's pointer is aligned and not null.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        debug_assert!(self.len <= self.lines.len() * LINE);
        // SAFETY: as above, and borrowed mutably; any bits are a float.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_line_whatever_its_length() {
        let mut buffer = Buffer::default();
        assert!(buffer.is_empty() && buffer.capacity() == 0);
        for len in [1, 15, 16, 17, 5, 1 << 16, 0, 33] {
            let room = buffer.capacity();
            buffer.hold(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.capacity() >= len.max(room));
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
            buffer.fill(len as f32);
            assert!(buffer.iter().all(|v| *v == len as f32));
        }
        assert_eq!(Buffer::zeros(21).as_slice(), [0.0; 21]);
    }
}
