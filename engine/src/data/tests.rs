//! Whole tasks, good and broken, through [`Dataset::open`].

use super::*;
use std::{fs, io::Write, path::PathBuf};

const PIXELS: &str = "preprocess: (scale: 1.0)";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn put(&self, name: &str, bytes: &[u8]) -> &Self {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
        self
    }
    /// `n` images of 2×3 whose bytes are all the row's number, labels row % 3.
    fn idx(&self, prefix: &str, n: u32) -> &Self {
        let images: Vec<u8> = (0..n).flat_map(|row| [row as u8; 6]).collect();
        let labels: Vec<u8> = (0..n).map(|row| (row % 3) as u8).collect();
        self.put(&format!("{prefix}.images"), &idx(&[n, 2, 3], &images));
        self.put(&format!("{prefix}.labels"), &idx(&[n], &labels))
    }
    fn task(&self, sources: &str, rest: &str) -> Result<Dataset, String> {
        let text = format!(r#"(version: 1, name: "t", sources: {{ {sources} }}, {rest})"#);
        self.put("task.ron", text.as_bytes());
        Dataset::open(&self.path("task.ron")).map_err(|e| e.to_string())
    }
    fn png(&self, name: &str, size: u32, rgb: [u8; 3]) -> &Self {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(size, size, image::Rgb(rgb))
            .save(self.path(name))
            .unwrap();
        self
    }
}

fn idx(dims: &[u32], body: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, dims.len() as u8];
    for dim in dims {
        out.extend(dim.to_be_bytes());
    }
    out.extend(body);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn npy(descr: &str, shape: &str, body: &[u8]) -> Vec<u8> {
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(body);
    out
}

fn values(batch: &Batch) -> Vec<f32> {
    batch.images.flatten_all().unwrap().to_vec1().unwrap()
}

const IDX: &str = r#""all": Idx(images: "x.images", labels: "x.labels")"#;
const HOLDOUT: &str =
    r#"preprocess: (scale: 1.0), classes: Count(3), splits: (holdout: Rows(from: "all"))"#;

#[test]
fn idx_is_read_in_the_order_of_the_split() {
    let folder = Folder::new();
    let data = folder
        .idx("x", 9)
        .task(
            IDX,
            r#"preprocess: (scale: 0.5, mean: [1.0], std: [2.0]), classes: Names(["a", "b", "c"]),
               splits: (search: Rows(from: "all", start: 2, count: 4), holdout: Rows(from: "all", start: 6))"#,
        )
        .unwrap();
    assert_eq!(data.info().sample_shape, [1, 2, 3]);
    assert_eq!(
        data.info().sizes,
        [(SplitName::Search, 4), (SplitName::Holdout, 3)]
    );
    assert_eq!(
        (data.len(SplitName::Search), data.len(SplitName::Training)),
        (4, 0)
    );
    let batch = data.batch(SplitName::Search, 1..3).unwrap();
    assert_eq!(batch.images.dims(), [2, 1, 2, 3]);
    assert_eq!(values(&batch), [[0.25f32; 6], [0.5; 6]].concat());
    assert_eq!(batch.labels, [0, 1]);
    let chosen = data.gather(SplitName::Holdout, &[2, 0]).unwrap();
    assert_eq!(chosen.labels, [2, 0]);
    assert_eq!(values(&chosen)[0], 1.5);
    assert_eq!(data.labels(SplitName::Holdout), [0, 1, 2]);
    assert!(data.batch(SplitName::Search, 3..5).is_err());
    assert!(data.batch(SplitName::Training, 0..1).is_err());
}

/// What encoders over sequences read: steps × features.
#[test]
fn one_channel_may_go_without_an_axis() {
    let folder = Folder::new();
    let rest = |preprocess: &str| {
        format!(
            "preprocess: ({preprocess}), classes: Count(3), splits: (holdout: Rows(from: \"all\"))"
        )
    };
    let of = |preprocess| folder.idx("x", 4).task(IDX, &rest(preprocess));
    let data = of("scale: 1.0, layout: nhw").unwrap();
    assert_eq!(data.info().sample_shape, [2, 3]);
    let batch = data.batch(SplitName::Holdout, 0..4).unwrap();
    assert_eq!(batch.images.dims(), [4, 2, 3]);
    let plain = of("scale: 1.0").unwrap();
    let plain = plain.batch(SplitName::Holdout, 0..4).unwrap();
    assert_eq!(values(&batch), values(&plain));
    let e = of("scale: 1.0, layout: nhw, channels: rgb").err().unwrap();
    assert!(e.contains("has no axis for channels"), "{e}");
}

#[test]
fn gzip_and_plain_hold_the_same_values_but_not_the_same_hash() {
    let folder = Folder::new();
    folder.idx("x", 5);
    let plain = folder.task(IDX, HOLDOUT).unwrap();
    let again = folder.task(IDX, HOLDOUT).unwrap();
    assert_eq!(plain.info(), again.info());
    let bytes = fs::read(folder.path("x.images")).unwrap();
    folder.put("x.images", &gzip(&bytes));
    let packed = folder.task(IDX, HOLDOUT).unwrap();
    let all = |d: &Dataset| values(&d.batch(SplitName::Holdout, 0..5).unwrap());
    assert_eq!(all(&plain), all(&packed));
    assert_ne!(plain.info().sha256, packed.info().sha256);
    assert_eq!(plain.info().sha256.len(), 64);
}

#[test]
fn broken_idx_files_are_explained() {
    let folder = Folder::new();
    let error = |name: &str, bytes: &[u8]| {
        folder.idx("x", 5).put(name, bytes);
        folder.task(IDX, HOLDOUT).err().unwrap()
    };
    let good = fs::read(folder.idx("x", 5).path("x.images")).unwrap();
    let e = error("x.images", b"\x89PNG....");
    assert!(
        e.contains("x.images") && e.contains("not an IDX file"),
        "{e}"
    );
    assert!(error("x.images", &[]).contains("cut short"));
    assert!(error("x.images", &good[..good.len() - 1]).contains("only 29"));
    let packed = gzip(&good);
    assert!(error("x.images", &packed[..packed.len() / 2]).contains("cut short"));
    let e = error("x.images", &idx(&[u32::MAX, u32::MAX, u32::MAX], &[1]));
    assert!(e.contains("announces"), "{e}");
    let e = error("x.images", &idx(&[60_000, 200, 200], &[1]));
    assert!(e.contains("only 1"), "{e}");
    assert!(error("x.images", &[0, 0, 13, 1, 0, 0, 0, 0]).contains("0x0d"));
    let e = error("x.labels", &idx(&[4], &[0; 4]));
    assert!(e.contains("5 images but its labels are 4"), "{e}");
    let e = error("x.labels", &idx(&[5], &[0, 1, 3, 0, 0]));
    assert!(e.contains("item 2 of") && e.contains("label 3"), "{e}");
    let e = error("x.labels", &good);
    assert!(e.contains("swapped"), "{e}");
    folder.idx("x", 5);
    fs::remove_file(folder.path("x.images")).unwrap();
    let e = folder.task(IDX, HOLDOUT).err().unwrap();
    assert!(e.contains("cannot read") && e.contains("x.images"), "{e}");
    assert!(Dataset::open(&folder.path("none.ron")).is_err());
}

#[test]
fn tasks_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    folder.idx("x", 6);
    let error = |sources: &str, rest: &str| folder.task(sources, rest).err().unwrap();
    let splits = r#"splits: (holdout: Rows(from: "all"))"#;
    let e = error(IDX, &format!("{PIXELS}, {splits}"));
    assert!(e.contains("`classes` is missing"), "{e}");
    let e = error(
        IDX,
        &format!(r#"{PIXELS}, classes: Names(["a", "a", "b"]), {splits}"#),
    );
    assert!(e.contains("twice"), "{e}");
    let twice = format!(r#"{IDX}, "copy": Idx(images: "x.images", labels: "x.labels")"#);
    let e = error(&twice, HOLDOUT);
    assert!(e.contains("read the same samples"), "{e}");
    let out = r#""all": Idx(images: "../x.images", labels: "x.labels")"#;
    assert!(error(out, HOLDOUT).contains("leads out of"));
    let e = error(
        IDX,
        &HOLDOUT.replace("Rows(from: \"all\")", "Rows(from: \"al\")"),
    );
    assert!(
        e.contains("task.ron: `splits`") && e.contains("did you mean `all`?"),
        "{e}"
    );
    let e = error(
        IDX,
        &HOLDOUT.replace("scale: 1.0", "scale: 1.0, crop: (9, 9)"),
    );
    assert!(e.contains("larger than the images"), "{e}");
    let e = error(
        IDX,
        &HOLDOUT.replace("scale: 1.0", "scale: 1.0, mean: [1.0, 2.0, 3.0]"),
    );
    assert!(e.contains("has 1 channel"), "{e}");
    let e = error(IDX, &HOLDOUT.replace("splits", "split"));
    assert!(e.contains("did you mean `splits`?"), "{e}");
}

#[test]
fn npy_and_npz_of_several_types_agree() {
    let folder = Folder::new();
    let pixels: Vec<u8> = (0..24).collect();
    let floats: Vec<u8> = pixels
        .iter()
        .flat_map(|p| f32::from(*p).to_le_bytes())
        .collect();
    let doubles: Vec<u8> = pixels
        .iter()
        .flat_map(|p| f64::from(*p).to_be_bytes())
        .collect();
    let labels: Vec<u8> = [2i64, 0, 1, 2]
        .iter()
        .flat_map(|l| l.to_le_bytes())
        .collect();
    let source = r#""all": Npy(images: "x.npy", labels: "y.npy")"#;
    let mut seen = Vec::new();
    for (descr, body) in [("|u1", &pixels), ("<f4", &floats), (">f8", &doubles)] {
        folder.put("x.npy", &npy(descr, "4, 2, 3, 1", body));
        folder.put("y.npy", &npy("<i8", "4,", &labels));
        let data = folder.task(source, HOLDOUT).unwrap();
        let batch = data.batch(SplitName::Holdout, 0..4).unwrap();
        assert_eq!(batch.labels, [2, 0, 1, 2]);
        seen.push((batch.images.dims().to_vec(), values(&batch)));
    }
    assert_eq!(seen[0].0, [4, 1, 2, 3]);
    assert!(seen.iter().all(|s| *s == seen[0]));

    let mut zip = zip::ZipWriter::new(fs::File::create(folder.path("d.npz")).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    for (name, bytes) in [
        ("image.npy", npy("|u1", "4, 2, 3", &pixels)),
        ("label.npy", npy("<i8", "4,", &labels)),
    ] {
        zip.start_file(name, options).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
    let source = r#""all": Npz(file: "d.npz", images: "image", labels: "label")"#;
    let data = folder.task(source, HOLDOUT).unwrap();
    assert_eq!(
        values(&data.batch(SplitName::Holdout, 0..4).unwrap()),
        seen[0].1
    );
    let e = folder
        .task(&source.replace("\"image\"", "\"imag\""), HOLDOUT)
        .err()
        .unwrap();
    assert!(e.contains("did you mean `image`?"), "{e}");
}

#[test]
fn broken_npy_files_are_explained() {
    let folder = Folder::new();
    let source = r#""all": Npy(images: "x.npy", labels: "y.npy")"#;
    let error = |images: Vec<u8>, labels: Vec<u8>| {
        folder.put("x.npy", &images).put("y.npy", &labels);
        folder.task(source, HOLDOUT).err().unwrap()
    };
    let images = || npy("|u1", "1, 2, 3", &[0; 6]);
    let labels = || npy("|u1", "1,", &[0]);
    for (x, y, message) in [
        (
            b"PK\x03\x04 and so on".to_vec(),
            labels(),
            "not an NPY file",
        ),
        (npy("|u1", "1, 2, 3", &[0; 5]), labels(), "only 5"),
        (
            npy("|u1", "99999999999, 99999999999", &[]),
            labels(),
            "announces the shape",
        ),
        (
            npy("<c8", "1, 2, 3", &[0; 48]),
            labels(),
            "elements of type",
        ),
        (
            npy("<i4", "1, 2, 3", &[0; 24]),
            labels(),
            "expected unsigned bytes (uint8) or floats",
        ),
        (
            npy("<f4", "1, 1, 1", &f32::NAN.to_le_bytes()),
            labels(),
            "item 0 holds NaN",
        ),
        (npy("|O", "1, 2, 3", &[0; 6]), labels(), "x.npy"),
        (npy("garbage", "1, 2, 3", &[0; 6]), labels(), "x.npy"),
        (
            images(),
            npy("<f4", "1,", &[0; 4]),
            "one integer class index",
        ),
        (images(), npy("|i1", "1,", &[255]), "label -1"),
        (
            images(),
            npy("|u1", "1, 3", &[0; 3]),
            "one integer class index",
        ),
        (npy("|u1", "1,", &[0]), labels(), "expected samples"),
        (npy("|u1", "1, 0, 5", &[]), labels(), "expected samples"),
    ] {
        let e = error(x, y);
        assert!(e.contains(message), "{e} does not say {message:?}");
    }
    let mut long = images();
    long[8..10].copy_from_slice(&[0xff, 0xff]);
    assert!(error(long, labels()).contains("header of 65535 bytes"));
}

#[test]
fn samples_that_are_no_images_pass_as_they_are() {
    let folder = Folder::new();
    let body: Vec<u8> = [0.5f32, 1.5, 2.5, 3.5]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    folder.put("x.npy", &npy("<f4", "2, 2", &body));
    folder.put("y.npy", &npy("|u1", "2,", &[0, 1]));
    let source = r#""all": Npy(images: "x.npy", labels: "y.npy")"#;
    let data = folder
        .task(source, &HOLDOUT.replace("scale: 1.0", "scale: 2.0"))
        .unwrap();
    let batch = data.batch(SplitName::Holdout, 0..2).unwrap();
    assert_eq!(
        (batch.images.dims(), values(&batch)),
        (&[2, 2][..], vec![1.0, 3.0, 5.0, 7.0])
    );
    let e = folder
        .task(
            source,
            &HOLDOUT.replace("scale: 1.0", "scale: 2.0, crop: (1, 1)"),
        )
        .err()
        .unwrap();
    assert!(e.contains("holds no images"), "{e}");
}

const SMALL: &str = "preprocess: (scale: 1.0, resize: Exact(2, 2))";

#[test]
fn class_folders_are_decoded_and_resized() {
    let folder = Folder::new();
    folder.png("pics/dog/b.png", 2, [9, 8, 7]);
    folder.png("pics/cat/a.png", 4, [1, 2, 3]);
    folder.put("pics/cat/notes.txt", b"not an image");
    folder.put("pics/.hidden/x", b"");
    let rest = format!(r#"{SMALL}, splits: (holdout: Rows(from: "pics"))"#);
    let data = folder
        .task(r#""pics": Folder(path: "pics")"#, &rest)
        .unwrap();
    assert_eq!(data.info().classes, ["cat", "dog"]);
    let batch = data.batch(SplitName::Holdout, 0..2).unwrap();
    assert_eq!(batch.images.dims(), [2, 3, 2, 2]);
    assert_eq!(batch.labels, [0, 1]);
    let expected: Vec<f32> = [1, 2, 3, 9, 8, 7]
        .iter()
        .flat_map(|v| [*v as f32; 4])
        .collect();
    assert_eq!(values(&batch), expected);
    // An absolute folder is the user's own choice.
    let absolute = format!(r#""pics": Folder(path: {:?})"#, folder.path("pics"));
    assert_eq!(
        folder
            .task(&absolute, &rest)
            .unwrap()
            .len(SplitName::Holdout),
        2
    );
    let e = folder
        .task(
            r#""pics": Folder(path: "pics")"#,
            &format!(
                r#"{SMALL}, classes: Names(["cat", "dogs"]), splits: (holdout: Rows(from: "pics"))"#
            ),
        )
        .err()
        .unwrap();
    assert!(e.contains("did you mean `dogs`?"), "{e}");
}

#[test]
fn broken_folders_are_explained() {
    let folder = Folder::new();
    let rest = format!(r#"{SMALL}, splits: (holdout: Rows(from: "pics"))"#);
    let open = || folder.task(r#""pics": Folder(path: "pics")"#, &rest);
    fs::create_dir_all(folder.path("pics")).unwrap();
    assert!(open().err().unwrap().contains("no sub-folders"));
    fs::create_dir_all(folder.path("pics/empty")).unwrap();
    let e = open().err().unwrap();
    assert!(e.contains("empty has no image"), "{e}");
    folder.put("pics/empty/broken.jpg", b"\xff\xd8\xff\xe0 cut off");
    let data = open().unwrap();
    let e = data
        .batch(SplitName::Holdout, 0..1)
        .err()
        .unwrap()
        .to_string();
    assert!(e.contains("broken.jpg cannot be decoded"), "{e}");
}

#[test]
fn a_list_of_paths_and_labels() {
    let folder = Folder::new();
    folder
        .png("pics/a.png", 2, [1, 1, 1])
        .png("pics/b.png", 2, [2, 2, 2]);
    let rest =
        format!(r#"{SMALL}, classes: Names(["x", "y"]), splits: (holdout: Rows(from: "l"))"#);
    let open = |text: &str| {
        folder.put("pics/list.csv", text.as_bytes());
        folder.task(r#""l": Csv(file: "pics/list.csv")"#, &rest)
    };
    let data = open("path,label,class_name\nb.png,1,why\na.png,x\n").unwrap();
    let batch = data.batch(SplitName::Holdout, 0..2).unwrap();
    assert_eq!((batch.labels.clone(), values(&batch)[0]), (vec![1, 0], 2.0));
    for (text, message) in [
        ("path,label\n", "lists no images"),
        ("a.png\n", "list.csv:1: expected path,label"),
        ("path,label\na.png,7\n", "label 7"),
        ("path,label\na.png,0\n../task.ron,0\n", "list.csv:3: "),
        ("path,label\nmissing.png,0\n", "missing.png"),
        ("/etc/hostname,0\n", "leads out of"),
    ] {
        let e = open(text).err().unwrap();
        assert!(e.contains(message), "{e} does not say {message:?}");
    }
    folder.put("pics/list.csv", b"a.png,0\na.png,0\n");
    let e = folder
        .task(
            r#""l": Csv(file: "pics/list.csv")"#,
            &rest.replace(
                r#"holdout: Rows(from: "l")"#,
                r#"holdout: Rows(from: "l", count: 1), search: Rows(from: "l", start: 1)"#,
            ),
        )
        .err()
        .unwrap();
    assert!(e.contains("in both search and holdout"), "{e}");
}

/// The bundled data: what the whole main path stands on.
#[test]
fn the_bundled_task_opens() {
    let task =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-models/fashion-resnet/task.ron");
    let data = Dataset::open(&task).unwrap();
    let info = data.info();
    assert_eq!(info.sample_shape, [1, 28, 28]);
    assert_eq!(info.classes.len(), 10);
    assert_eq!(
        info.sizes,
        [
            (SplitName::Calibration, 1000),
            (SplitName::Search, 2000),
            (SplitName::Training, 17_000),
            (SplitName::Holdout, 10_000),
        ]
    );
    // The first labels of Fashion-MNIST's test set: ankle boot, pullover, trouser, trouser.
    assert_eq!(
        data.batch(SplitName::Holdout, 0..4).unwrap().labels,
        [9, 2, 1, 1]
    );
}

/// Every file of the samples is the one whose provenance is written down.
#[test]
fn the_samples_have_their_digests() {
    for sample in ["fashion-resnet", "efficientnet-lite0", "fashion-encoder"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../sample-models")
            .join(sample);
        let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
        assert!(sums.lines().count() >= 3);
        for line in sums.lines() {
            let (expected, name) = line.split_once("  ").unwrap();
            let (_, digest) = files::digest(&folder.join(name)).unwrap();
            let got: String = digest.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(got, expected, "{name}");
        }
    }
}

/// The template of the second sample is a task: with images in place it opens.
#[test]
fn the_example_task_opens_with_images() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sample-models/efficientnet-lite0/task.example.ron");
    let error = Dataset::open(&example).err().unwrap().to_string();
    assert!(
        error.contains("cannot read") && error.contains("images"),
        "{error}"
    );
    let folder = Folder::new();
    for i in 0..10 {
        folder.png(&format!("images/{}/{i}.png", i % 3), 300, [i, 2 * i, 255]);
    }
    folder.put("task.ron", &fs::read(example).unwrap());
    let data = Dataset::open(&folder.path("task.ron")).unwrap();
    assert_eq!(data.info().sample_shape, [3, 224, 224]);
    let batch = data.batch(SplitName::Holdout, 0..1).unwrap();
    let blue = values(&batch)[3 * 224 * 224 - 1];
    assert_eq!(blue, 1.0);
}

#[test]
fn sources_may_have_no_labels() {
    let folder = Folder::new();
    folder.idx("x", 6).png("shots/b.png", 4, [9, 8, 7]);
    folder
        .png("shots/a.png", 4, [1, 2, 3])
        .put("shots/notes.txt", b"no image");
    let pixels: Vec<u8> = (0..36).collect();
    folder.put("x.npy", &npy("|u1", "6, 2, 3", &pixels));
    for source in [
        r#""all": Idx(images: "x.images")"#,
        r#""all": Npy(images: "x.npy")"#,
    ] {
        let data = folder.task(source, HOLDOUT).unwrap();
        assert_eq!(data.info().unlabelled, [SplitName::Holdout]);
        assert_eq!(
            (
                data.len(SplitName::Holdout),
                data.labels(SplitName::Holdout).len()
            ),
            (6, 0)
        );
        assert_eq!(
            data.images(SplitName::Holdout, &[5, 0]).unwrap().dims(),
            [2, 1, 2, 3]
        );
        let e = data
            .gather(SplitName::Holdout, &[0])
            .err()
            .unwrap()
            .to_string();
        assert!(
            e.contains("the holdout split of task \"t\" has no labels"),
            "{e}"
        );
    }
    // One split with labels, another without; the hash knows the difference.
    let rest = r#"preprocess: (scale: 1.0), classes: Count(3),
        splits: (training: Rows(from: "raw"), holdout: Rows(from: "all"))"#;
    let both = format!(r#"{IDX}, "raw": Npy(images: "x.npy")"#);
    let data = folder.task(&both, rest).unwrap();
    assert_eq!(data.info().unlabelled, [SplitName::Training]);
    assert_eq!(data.gather(SplitName::Holdout, &[2]).unwrap().labels, [2]);
    // A folder of images, sorted by name.
    let images = r#""all": Images(path: "shots")"#;
    let rest = HOLDOUT.replace("scale: 1.0", "scale: 1.0, resize: Exact(2, 2)");
    let data = folder.task(images, &rest).unwrap();
    assert_eq!(data.len(SplitName::Holdout), 2);
    let first = data.images(SplitName::Holdout, &[0]).unwrap();
    let first = first.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(first[..2], [1.0, 1.0]);
    let e = folder
        .task(&images.replace("shots", "."), &rest)
        .err()
        .unwrap();
    assert!(e.contains("has no image") && e.contains("`Folder`"), "{e}");
    assert!(
        folder
            .task(&images.replace("path", "paht"), &rest)
            .err()
            .unwrap()
            .contains("`path`?")
    );
}
