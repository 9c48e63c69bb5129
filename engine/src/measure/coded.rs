//! Entropy coding of weight codes by a library: Huffman codes in the form of DEFLATE (RFC 1951), which every inflater reads. It saves on the disk and
//! on the way to a device; in memory it saves nothing.

use crate::graph::{Graph, SharedValues, ValueId};
use miniz_oxide::deflate::core::{
    CompressionStrategy, CompressorOxide, TDEFLFlush, compress_to_output,
    create_comp_flags_from_zip_params,
};
use std::collections::BTreeMap;

/// Bytes that codes take entropy-coded: exactly as many as the coder writes, its code tables included. One code a symbol, or two of 4 bits each,
/// whichever is less (no symbol takes less than a bit), and a byte that says which.
pub fn coded_bytes(codes: &[u8]) -> u64 {
    let alone = huffman(codes).len();
    let least = match codes.iter().all(|code| *code < 16) {
        true => alone.min(huffman(&paired(codes)).len()),
        false => alone,
    };
    least as u64 + 1
}

/// Two codes a byte, the first in the low half: as ONNX packs 4 bits.
fn paired(codes: &[u8]) -> Vec<u8> {
    let pair = |pair: &[u8]| pair[0] | pair.get(1).map_or(0, |second| second << 4);
    codes.chunks(2).map(pair).collect()
}

/// A DEFLATE stream of Huffman codes alone: there are no repeats among weights, and looking for some costs more than it gains.
fn huffman(symbols: &[u8]) -> Vec<u8> {
    const LEVEL: i32 = 6;
    const NO_ZLIB_HEADER: i32 = 0;
    let strategy = CompressionStrategy::HuffmanOnly as i32;
    let flags = create_comp_flags_from_zip_params(LEVEL, NO_ZLIB_HEADER, strategy);
    let mut out = Vec::with_capacity(symbols.len() / 2 + 64);
    let take = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        true
    };
    // It is done after one call: all is given, and all that comes is taken.
    compress_to_output(
        &mut CompressorOxide::new(flags),
        symbols,
        TDEFLFlush::Finish,
        take,
    );
    out
}

/// Shannon's entropy of codes, in bits a code: the least that a coder needs which takes each by itself. 0 for no codes.
pub fn entropy_bits(codes: &[u8]) -> f64 {
    let mut counts = [0_u64; 256];
    for code in codes {
        counts[usize::from(*code)] += 1;
    }
    let n = codes.len() as f64;
    let used = counts.iter().filter(|count| **count > 0);
    used.map(|count| *count as f64 / n)
        .map(|share| -share * libm::log2(share))
        .sum()
}

/// Codes of weights that share values, each with the code of zero (−1: none is).
pub(super) fn codes(graph: &Graph) -> BTreeMap<ValueId, i64> {
    let zero = |s: &SharedValues| {
        let values = graph.value(s.codebook).data.as_ref()?.to_f32_vec();
        let at = values.iter().position(|v| *v == 0.0)?;
        // Of lists one behind the other, only the first code is the same value in all.
        (s.offsets.is_none() || at == 0).then_some(at as i64)
    };
    let shared = graph.shared_values().into_iter();
    shared.map(|s| (s.codes, zero(&s).unwrap_or(-1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use std::io::Read;

    fn inflate(bytes: &[u8]) -> Vec<u8> {
        let mut read = Vec::new();
        flate2::read::DeflateDecoder::new(bytes)
            .read_to_end(&mut read)
            .expect("decodes");
        read
    }

    /// What is counted decodes to the same codes, by another library, and comes near the entropy.
    #[test]
    fn the_size_is_that_of_codes_that_can_be_read_back() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for (n, values) in [
            (0, 16),
            (1, 16),
            (7, 3),
            (1001, 16),
            (200_000, 16),
            (200_000, 64),
        ] {
            // Three in four are zero.
            let mut code = || match rng.random::<u8>() % 4 {
                0 => rng.random::<u8>() % values,
                _ => 0,
            };
            let codes: Vec<u8> = (0..n).map(|_| code()).collect();
            let (alone, pairs) = (huffman(&codes), huffman(&paired(&codes)));
            assert_eq!(inflate(&alone), codes);
            let mut unpacked: Vec<u8> = inflate(&pairs)
                .iter()
                .flat_map(|pair| [pair & 15, pair >> 4])
                .collect();
            unpacked.truncate(codes.len());
            let narrow = codes.iter().all(|code| *code < 16);
            assert!(!narrow || unpacked == codes);
            let least = if narrow {
                alone.len().min(pairs.len())
            } else {
                alone.len()
            };
            assert_eq!(coded_bytes(&codes), least as u64 + 1);
            if n > 100_000 {
                let bits = coded_bytes(&codes) as f64 * 8.0 / n as f64;
                let entropy = entropy_bits(&codes);
                let near = if narrow { 1.04 } else { 1.2 };
                assert!(
                    bits >= entropy && bits < near * entropy,
                    "{bits} against {entropy}"
                );
            }
        }
    }

    #[test]
    fn entropy_is_that_of_the_shares() {
        assert_eq!(entropy_bits(&[]), 0.0);
        assert_eq!(entropy_bits(&[7; 9]), 0.0);
        assert_eq!(entropy_bits(&[0, 1, 2, 3]), 2.0);
        assert_eq!(entropy_bits(&[0, 0, 1, 2]), 1.5);
    }
}
