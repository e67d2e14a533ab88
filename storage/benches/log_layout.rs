//! What a synced append to the log costs, by how RocksDB is set up: `make bench`, or
//! `cargo bench -p muster-storage --bench log_layout`. See ADR 9.
//!
//! All layouts are open at once and appended to in turns, some milliseconds each, so that a busy
//! moment of the machine meets all of them; the ratios are of turns side by side.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rocksdb::{DB, DBCompressionType, DBRecoveryMode, Options, WriteBatch, WriteOptions};

/// Octets of an entry.
const ENTRY: usize = 300;
/// Turns of each layout at each size of batch.
const TURNS: usize = 30;
/// Of one turn.
const TURN: Duration = Duration::from_millis(60);

fn main() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    println!(
        "| layout | entries in a batch | p50 µs | p99 µs | by the present one, median of {TURNS} pairs |"
    );
    println!("|---|---|---|---|---|");
    let mut layouts = layouts(dir.path());
    for (_, layout) in &mut layouts {
        layout.fill();
    }
    for batch in [1, 16, 256] {
        let mut figures: Vec<Figures> = layouts.iter().map(|_| Figures::default()).collect();
        for turn in 0..TURNS {
            for place in 0..layouts.len() {
                // Nobody always comes after the same one.
                let place = (place + turn) % layouts.len();
                let (_, layout) = &mut layouts[place];
                figures[place].turn(layout.as_mut(), batch);
            }
        }
        let present = figures[0].turns.clone();
        for ((name, _), mut figures) in layouts.iter().zip(figures) {
            let ratios = figures.turns.iter().zip(&present);
            let mut ratios: Vec<f64> = ratios.map(|(own, present)| own / present).collect();
            ratios.sort_by(f64::total_cmp);
            figures.all.sort_unstable();
            println!(
                "| {name} | {batch} | {} | {} | {:.2} |",
                figures.all[figures.all.len() / 2],
                figures.all[figures.all.len() * 99 / 100],
                ratios[ratios.len() / 2]
            );
        }
    }
}

/// Microseconds of all appends of a layout, and the median of each turn.
#[derive(Default)]
struct Figures {
    all: Vec<u64>,
    turns: Vec<f64>,
}

impl Figures {
    fn turn(&mut self, layout: &mut dyn Layout, batch: usize) {
        let mut took = Vec::new();
        let end = Instant::now() + TURN;
        while Instant::now() < end {
            let start = Instant::now();
            layout.append(batch);
            took.push(u64::try_from(start.elapsed().as_micros()).unwrap());
        }
        took.sort_unstable();
        self.turns.push(took[took.len() / 2].max(1) as f64);
        self.all.extend(took);
    }
}

/// A way to keep the log.
trait Layout {
    /// Appends so many entries; they are durable on return.
    fn append(&mut self, batch: usize);

    /// Brings it to where WAL files have been left behind, and can be recycled.
    fn fill(&mut self) {}
}

/// More than two write buffers.
const FILL: usize = 80 << 20;

fn layouts(dir: &Path) -> Vec<(&'static str, Box<dyn Layout>)> {
    let open = |name: &str, change: fn(&mut Options)| Rocks::open(&dir.join(name), change);
    let nothing = |_: &mut Options| ();
    vec![
        (
            "present: write, then flush_wal(true)",
            Box::new(open("present", nothing)),
        ),
        ("the same again (noise)", Box::new(open("again", nothing))),
        (
            "compression off",
            Box::new(open("plain", |options| {
                options.set_compression_type(DBCompressionType::None);
            })),
        ),
        (
            "four recycled WAL files",
            Box::new(open("recycled", |options| {
                options.set_recycle_log_file_num(4);
                // RocksDB ignores recycling in the mode that the log needs.
                options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
            })),
        ),
        (
            "write buffer of 128 MiB",
            Box::new(open("large", |options| {
                options.set_write_buffer_size(128 << 20)
            })),
        ),
        (
            "WAL flushed by hand",
            Box::new(open("manual", |options| options.set_manual_wal_flush(true))),
        ),
        (
            "one write with sync",
            Box::new(Rocks {
                sync: true,
                ..open("sync", nothing)
            }),
        ),
        (
            "rows in an instance of their own",
            Box::new(WithRows {
                log: open("log", nothing),
                rows: Some(open("rows", nothing)),
                row: 0,
            }),
        ),
        (
            "rows in the same instance",
            Box::new(WithRows {
                log: open("shared", nothing),
                rows: None,
                row: 0,
            }),
        ),
        (
            "no RocksDB: a file that grows",
            Box::new(Grown(File::create(dir.join("grown.file")).unwrap())),
        ),
        (
            "no RocksDB: a file written over",
            Box::new(Overwritten::new(&dir.join("over.file"))),
        ),
    ]
}

/// As `storage::engine` opens its log.
struct Rocks {
    db: DB,
    index: u64,
    sync: bool,
}

impl Rocks {
    fn open(path: &Path, change: fn(&mut Options)) -> Self {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(32 << 20);
        options.set_max_background_jobs(2);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        change(&mut options);
        Self {
            db: DB::open(&options, path).unwrap(),
            index: 0,
            sync: false,
        }
    }

    fn batch(&mut self, batch: usize) -> WriteBatch {
        let mut writes = WriteBatch::default();
        for _ in 0..batch {
            self.index += 1;
            writes.put(
                [b"e".as_slice(), &self.index.to_be_bytes()].concat(),
                noise(self.index),
            );
        }
        writes
    }
}

impl Layout for Rocks {
    fn append(&mut self, batch: usize) {
        let writes = self.batch(batch);
        let mut options = WriteOptions::default();
        options.set_sync(self.sync);
        self.db.write_opt(writes, &options).unwrap();
        if !self.sync {
            self.db.flush_wal(true).unwrap();
        }
    }

    fn fill(&mut self) {
        for _ in 0..FILL / (256 * ENTRY) {
            let writes = self.batch(256);
            self.db.write(writes).unwrap();
        }
        self.db.flush_wal(true).unwrap();
    }
}

/// Each entry is followed by a row of its own, which is not synced.
struct WithRows {
    log: Rocks,
    rows: Option<Rocks>,
    row: u64,
}

impl Layout for WithRows {
    fn append(&mut self, batch: usize) {
        self.log.append(batch);
        self.write_rows(batch);
    }

    fn fill(&mut self) {
        self.log.fill();
    }
}

impl WithRows {
    fn write_rows(&mut self, batch: usize) {
        let mut writes = WriteBatch::default();
        for _ in 0..batch {
            self.row += 1;
            // Objects are written over.
            let key = [b"r".as_slice(), &(self.row % 10_000).to_be_bytes()].concat();
            writes.put(key, noise(self.row));
        }
        self.rows
            .as_ref()
            .unwrap_or(&self.log)
            .db
            .write(writes)
            .unwrap();
    }
}

struct Grown(File);

impl Layout for Grown {
    fn append(&mut self, batch: usize) {
        self.0.write_all(&vec![7; batch * ENTRY]).unwrap();
        self.0.sync_data().unwrap();
    }
}

/// A file of 64 MiB whose blocks are all written.
struct Overwritten(File, u64);

impl Overwritten {
    const LENGTH: u64 = 64 << 20;

    fn new(path: &Path) -> Self {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(path)
            .unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..Self::LENGTH >> 20 {
            file.write_all(&zeros).unwrap();
        }
        file.sync_all().unwrap();
        Self(file, 0)
    }
}

impl Layout for Overwritten {
    fn append(&mut self, batch: usize) {
        let bytes = vec![7; batch * ENTRY];
        if self.1 + bytes.len() as u64 > Self::LENGTH {
            self.1 = 0;
        }
        self.0.write_all_at(&bytes, self.1).unwrap();
        self.1 += bytes.len() as u64;
        self.0.sync_data().unwrap();
    }
}

/// Octets that do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1 << 40;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(ENTRY).collect()
}
