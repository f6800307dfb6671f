//! [`BackgroundWriter`]: writes a snapshot on a thread of its own, so that a disk that hangs does
//! not hold up the apply lane.
//!
//! - Two blocks circulate: one is filled while the other is written. The caller waits for an empty
//!   one, and gives up when the disk has not answered for longer than the caller's patience.
//! - A thread that was given up ends when its disk answers; its writer is dropped with it.
//! - Otherwise nothing outlives the [`BackgroundWriter`]: when it ends or is dropped, its thread
//!   has ended, and the underlying writer is handed back or dropped.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_core::limits;

use crate::disk_watch::DiskWatch;

/// Blocks in circulation.
const BLOCKS: usize = 2;
/// Bytes of a block.
const BLOCK_BYTES: usize = limits::SNAPSHOT_BLOCK_BYTES;
/// Time between two looks at a disk that does not answer.
const LOOK: Duration = Duration::from_millis(100);

/// What the thread hands back: its writer, and whether it wrote everything.
type Ended<W> = (W, io::Result<()>);

pub(super) struct BackgroundWriter<W> {
    /// Takes filled blocks to the thread; `None` once all were handed in.
    full: Option<Sender<Vec<u8>>>,
    back: Receiver<Vec<u8>>,
    /// The block that is being filled.
    block: Vec<u8>,
    /// Blocks created so far.
    made: usize,
    /// `None` once it was joined or given up.
    thread: Option<JoinHandle<Ended<W>>>,
    watch: Arc<DiskWatch>,
    patience: Duration,
    length: u64,
}

impl<W: Write + Send + 'static> BackgroundWriter<W> {
    /// Starts a thread that writes with `writer`, and waits for no disk operation longer than
    /// `patience`. Until the thread ends, only it and `writer` may use `watch`.
    pub(super) fn take(writer: W, watch: &Arc<DiskWatch>, patience: Duration) -> io::Result<Self> {
        let (full, blocks) = channel();
        let (give_back, back) = channel();
        let seen = Arc::clone(watch);
        let write = move || write(writer, &blocks, &give_back, &seen);
        let thread = std::thread::Builder::new().name("snapshot".to_owned()).spawn(write)?;
        let (full, thread, watch) = (Some(full), Some(thread), Arc::clone(watch));
        Ok(Self { full, back, block: Vec::new(), made: 0, thread, watch, patience, length: 0 })
    }

    /// Bytes accepted so far, written or not.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the writer once it has written everything.
    pub(super) fn end(mut self) -> io::Result<W> {
        let handed = self.hand_in();
        match self.wait() {
            Some((writer, written)) => written.and(handed).map(|()| writer),
            None => Err(self.gave_up()),
        }
    }

    /// Hands the filled block to the thread.
    fn hand_in(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        if block.is_empty() {
            return Ok(());
        }
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the snapshot's thread ended");
        self.full.as_ref().ok_or_else(gone)?.send(block).map_err(|_ended| gone())
    }

    /// Takes an empty block to fill, waiting for one if all are in use.
    fn take_block(&mut self) -> io::Result<()> {
        if self.made < BLOCKS {
            self.made += 1;
            self.block = Vec::with_capacity(BLOCK_BYTES);
            return Ok(());
        }
        while self.thread.is_some() {
            match self.back.recv_timeout(LOOK) {
                Ok(block) => {
                    self.block = block;
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => self.give_up_if_it_hangs(),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, "its thread ended"));
                }
            }
        }
        Err(self.gave_up())
    }
}

impl<W> BackgroundWriter<W> {
    /// Waits for the thread to end; `None` if it was given up.
    fn wait(&mut self) -> Option<Ended<W>> {
        self.full = None;
        while self.thread.is_some() {
            match self.back.recv_timeout(LOOK) {
                Ok(_block) => {}
                Err(RecvTimeoutError::Timeout) => self.give_up_if_it_hangs(),
                Err(RecvTimeoutError::Disconnected) => {
                    // If the thread panicked, the panic is logged already, and its writer is lost.
                    return self.thread.take()?.join().ok();
                }
            }
        }
        None
    }

    fn give_up_if_it_hangs(&mut self) {
        if self.watch.under_way() >= self.patience {
            self.full = None;
            self.thread = None;
        }
    }

    fn gave_up(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, self.watch.not_answering())
    }
}

/// The thread's work, until all is written, the writer fails, or the caller is gone.
fn write<W: Write>(
    mut writer: W,
    blocks: &Receiver<Vec<u8>>,
    back: &Sender<Vec<u8>>,
    watch: &DiskWatch,
) -> Ended<W> {
    for mut block in blocks {
        if let Err(error) = watch.at_disk(|| writer.write_all(&block)) {
            return (writer, Err(error));
        }
        block.clear();
        if back.send(block).is_err() {
            break;
        }
    }
    (writer, Ok(()))
}

impl<W: Write + Send + 'static> Write for BackgroundWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.capacity() == 0 {
            self.take_block()?;
        }
        let count = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        self.length += count as u64;
        if self.block.len() == BLOCK_BYTES {
            self.hand_in()?;
        }
        Ok(count)
    }

    /// Does nothing: [`BackgroundWriter::end`] writes everything.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W> Drop for BackgroundWriter<W> {
    fn drop(&mut self) {
        // Waits for a write under way, unless it hangs.
        drop(self.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn watch() -> Arc<DiskWatch> {
        Arc::new(DiskWatch::new("snapshots", Path::new("/snap")))
    }

    /// A disk whose writes return when the test lets them go.
    struct Gate {
        go: Arc<Mutex<Receiver<()>>>,
        written: Arc<Mutex<Vec<u8>>>,
        alive: Arc<AtomicUsize>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let go = self.go.lock().expect("nobody panics");
            go.recv().map_err(|_gone| io::Error::from(io::ErrorKind::StorageFull))?;
            self.written.lock().expect("nobody panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Drop for Gate {
        fn drop(&mut self) {
            self.alive.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn gate() -> (Gate, Sender<()>) {
        let (let_go, go) = channel();
        let (go, alive) = (Arc::new(Mutex::new(go)), Arc::new(AtomicUsize::new(1)));
        (Gate { go, written: Arc::default(), alive }, let_go)
    }

    #[test]
    fn what_is_written_arrives_whole_and_the_writer_comes_back() {
        let bytes: Vec<u8> = (0..5 * BLOCK_BYTES / 2).map(|place| (place % 251) as u8).collect();
        let mut out =
            BackgroundWriter::take(Vec::new(), &watch(), Duration::MAX).expect("a thread");
        for piece in bytes.chunks(70_001) {
            out.write_all(piece).expect("it is written");
        }
        assert_eq!(out.length(), bytes.len() as u64);
        assert!(out.end().expect("it is whole") == bytes);
        let empty = BackgroundWriter::take(Vec::new(), &watch(), Duration::MAX).expect("a thread");
        assert_eq!(empty.end().expect("nothing is whole"), b"");
    }

    #[test]
    fn a_disk_that_hangs_is_given_up_and_what_it_had_goes_later() {
        let (gate, let_go) = gate();
        let alive = Arc::clone(&gate.alive);
        let watch = watch();
        let mut out = BackgroundWriter::take(gate, &watch, Duration::ZERO).expect("a thread");
        let block = vec![7; BLOCK_BYTES];
        let error = (0..).find_map(|_| out.write_all(&block).err()).expect("it ends");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("the disk of /snap has not answered"), "{error}");
        assert_eq!(out.write_all(&block).expect_err("for good").kind(), io::ErrorKind::TimedOut);
        assert_eq!(out.end().err().expect("for good").kind(), io::ErrorKind::TimedOut);
        assert_eq!(alive.load(Ordering::SeqCst), 1, "its thread hangs");
        drop(let_go);
        while alive.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_writers_own_error_is_told() {
        let (gate, let_go) = gate();
        let alive = Arc::clone(&gate.alive);
        let_go.send(()).expect("it listens");
        drop(let_go);
        let mut out = BackgroundWriter::take(gate, &watch(), Duration::MAX).expect("a thread");
        let block = vec![7; BLOCK_BYTES];
        (0..).find_map(|_| out.write_all(&block).err()).expect("the second one fails");
        assert_eq!(out.end().err().expect("it failed").kind(), io::ErrorKind::StorageFull);
        assert_eq!(alive.load(Ordering::SeqCst), 0, "it is gone with the thread");
    }

    #[test]
    fn one_that_is_dropped_has_ended() {
        let (gate, let_go) = gate();
        let alive = Arc::clone(&gate.alive);
        let mut out = BackgroundWriter::take(gate, &watch(), Duration::MAX).expect("a thread");
        out.write_all(&vec![7; BLOCK_BYTES]).expect("it is on its way");
        let_go.send(()).expect("it listens");
        drop(out);
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }
}
