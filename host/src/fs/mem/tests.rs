use std::io;
use std::path::Path;

use super::{DiskFault, LateFull, MemFs};
use crate::fs::{Fs, make_durable};

fn disk() -> (MemFs, &'static Path) {
    (MemFs::with_dir(Path::new("/d")), Path::new("/d/a"))
}

fn bytes(fs: &MemFs, path: &Path) -> Option<Vec<u8>> {
    fs.image().remove(path)
}

#[test]
fn a_crash_loses_what_was_not_synced_names_too() -> io::Result<()> {
    let (fs, path) = disk();
    let file = fs.create(path)?;
    file.write_at(b"one", 0)?;
    file.sync()?;
    fs.crash();
    assert_eq!(bytes(&fs, path), None, "the name was not synced");

    let file = fs.create(path)?;
    file.write_at(b"one", 0)?;
    make_durable(&fs, path)?;
    fs.crash();
    assert_eq!(bytes(&fs, path), Some(vec![]), "the bytes were not synced");
    assert!(file.write_at(b"x", 0).is_err(), "a file does not survive the crash");

    let file = fs.open(path, true)?;
    file.write_at(b"one", 4095)?;
    file.sync()?;
    file.write_at(b"two", 0)?;
    fs.rename(path, Path::new("/d/b"))?;
    fs.crash();
    let kept = bytes(&fs, path).expect("the rename was not synced");
    assert_eq!((&kept[..3], &kept[4095..]), (&[0; 3][..], &b"one"[..]));
    Ok(())
}

#[test]
fn a_file_in_a_directory_that_was_lost_is_lost() -> io::Result<()> {
    let (fs, _path) = disk();
    let path = Path::new("/d/new/deep/a");
    fs.create_dir_all(Path::new("/d/new/deep"))?;
    fs.create(path)?.sync()?;
    make_durable(&fs, path)?;
    make_durable(&fs, Path::new("/d/new/deep"))?;
    fs.crash();
    assert!(!fs.exists(Path::new("/d/new"))?);
    assert!(!fs.exists(path)?);
    Ok(())
}

#[test]
fn a_failed_sync_never_becomes_durable() -> io::Result<()> {
    let (fs, path) = disk();
    let file = fs.create(path)?;
    make_durable(&fs, path)?;
    file.write_at(b"one", 0)?;
    fs.fail_op(fs.ops() + 1, DiskFault::Io);
    assert!(file.sync().is_err());
    file.sync()?;
    assert_eq!(bytes(&fs, path), Some(b"one".to_vec()), "still in memory");
    file.drop_cache();
    assert_eq!(bytes(&fs, path), Some(vec![]), "never on the disk");
    Ok(())
}

#[test]
fn the_disk_halts_behind_an_operation_until_it_crashes() -> io::Result<()> {
    let (fs, path) = disk();
    fs.halt_after(fs.ops() + 1);
    let file = fs.create(path)?;
    assert!(file.write_at(b"x", 0).is_err());
    assert!(fs.exists(path).is_err() && file.len().is_err());
    fs.crash();
    assert!(!fs.exists(path)?);
    Ok(())
}

#[test]
fn space_ends_and_comes_back() -> io::Result<()> {
    let (fs, path) = disk();
    fs.set_capacity(10_000);
    let file = fs.create(path)?;
    file.preallocate(8_000)?;
    file.write_at(&[1; 8_000], 0)?;
    let full = file.write_at(&[1; 2_001], 8_000).expect_err("one byte too many");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs.space(path)?.available, 2_000);
    fs.remove(path)?;
    assert_eq!(fs.space(path)?.available, 10_000);
    Ok(())
}

/// A process must be able to start on a disk that its own files have filled.
#[test]
fn a_directory_that_is_there_takes_no_space() -> io::Result<()> {
    let (fs, path) = disk();
    let dir = path.parent().expect("a file has a parent");
    fs.set_late_full(LateFull { name: true, sync_dir: true, ..LateFull::default() });
    fs.set_capacity(0);
    fs.create_dir_all(dir)?;
    make_durable(&fs, dir)?;
    let full = fs.create_dir_all(&dir.join("more")).expect_err("no space for a new name");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    Ok(())
}

#[test]
fn a_lock_is_held_once_until_dropped_or_crashed() -> io::Result<()> {
    let (fs, path) = disk();
    let held = fs.lock(path)?;
    let second = fs.lock(path).map(drop).map_err(|e| e.kind());
    assert_eq!(second, Err(io::ErrorKind::WouldBlock));
    fs.crash();
    let again = fs.lock(path)?;
    drop(held);
    assert!(fs.lock(path).is_err(), "the old lock's end does not release the new one");
    drop(again);
    fs.lock(path).map(drop)
}

#[test]
fn a_kinder_crash_keeps_any_subset_of_sectors() -> io::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let (fs, path) = disk();
        let file = fs.create(path)?;
        file.preallocate(1024)?;
        file.sync()?;
        make_durable(&fs, path)?;
        file.write_at(&[1; 1024], 0)?;
        fs.crash_keeping(seed);
        let kept = bytes(&fs, path).expect("the name was synced");
        assert!(kept[..512].iter().all(|b| *b == kept[0]), "sectors are whole");
        seen.insert((kept[0], kept[512]));
    }
    let kept = [(0, 0), (0, 1), (1, 0), (1, 1)];
    assert!(kept.iter().all(|subset| seen.contains(subset)), "each subset occurs: {seen:?}");
    assert!(seen.iter().any(|(one, two)| *one > 1 || *two > 1), "and a bad one: {seen:?}");
    Ok(())
}

#[test]
fn rot_is_one_bit_and_durable() -> io::Result<()> {
    let (fs, path) = disk();
    let file = fs.create(path)?;
    file.write_at(b"abc", 0)?;
    file.sync()?;
    make_durable(&fs, path)?;
    fs.corrupt(path, 1)?;
    fs.crash();
    assert_eq!(bytes(&fs, path), Some(b"a`c".to_vec()));
    fs.cut(path, 2)?;
    assert_eq!(fs.open(path, false)?.len()?, 2);
    Ok(())
}

#[test]
fn a_bad_sector_stays_until_it_is_written() -> io::Result<()> {
    let (fs, path) = disk();
    let file = fs.create(path)?;
    file.write_at(&[7; 2048], 0)?;
    file.sync()?;
    make_durable(&fs, path)?;
    fs.bad_sectors(path, 600..700)?;
    let other = path.with_extension("other");
    fs.rename(path, &other)?;
    make_durable(&fs, &other)?;
    fs.crash();
    let file = fs.open(&other, true)?;
    let mut buf = [0; 512];
    let mut read = |offset| file.read_at(&mut buf, offset);
    assert_eq!(read(0)?, 512, "its neighbours can be read");
    assert!(read(511).is_err() && read(1000).is_err());
    assert_eq!(read(1024)?, 512);
    file.write_at(&[8; 512], 512)?;
    assert_eq!(read(512)?, 512);
    fs.bad_sectors(&other, 0..1)?;
    assert!(read(0).is_err());
    fs.mend();
    assert_eq!(read(0)?, 512);
    assert_eq!(fs.struck()["bad sectors"], 3);
    Ok(())
}
