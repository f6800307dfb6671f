//! Finds the pool from which a mounted filesystem takes its space, in the list of mounts: the text
//! of `/proc/self/mountinfo`, which [`disk`](super::disk) reads.
//!
//! - Each subvolume of a btrfs filesystem and each dataset of a ZFS pool has a device number of its
//!   own, but shares the space of the filesystem or pool.
//! - A btrfs filesystem is known by the device number of its superblock, which all its mounts share
//!   and which stays when disks are added to it or removed. A ZFS pool is known by its name.
//! - A mount is found by its id, not by its path, so neither bind mounts nor mounts that hide
//!   others mislead.

use lockstep_core::mutant::plant;

/// A bit that is set in every pool's number and in no device number: device numbers of Linux have
/// 32 bits.
const OF_POOL: u64 = 1 << 63;

/// The number of the pool that the space of a mount comes from; `None` if it is of another
/// filesystem, or not listed. A line of the list is
///
/// ```text
/// id parent major:minor root mount-point options [optional …] - filesystem source options
/// ```
///
/// where major:minor is the superblock's device number, and spaces within a field are escaped.
pub(super) fn pool(mountinfo: &str, mount: u64) -> Option<u64> {
    plant!("space_for_each_subvolume" does return None);
    let line = mountinfo.lines().find(|line| id_of(line) == Some(mount))?;
    let (of_mount, of_filesystem) = line.split_once(" - ")?;
    let superblock = of_mount.split(' ').nth(2)?;
    let (kind, source) = of_filesystem.split_once(' ')?;
    let pool = match kind {
        "btrfs" => superblock,
        // The source is a dataset, POOL/NAME/NAME, or a snapshot of one, DATASET@NAME.
        "zfs" => source.split([' ', '/', '@']).next()?,
        _other => return None,
    };
    let hash = blake3::hash(format!("{kind} {pool}").as_bytes());
    let (head, _rest) = hash.as_bytes().split_first_chunk::<8>()?;
    Some(u64::from_le_bytes(*head) | OF_POOL)
}

fn id_of(line: &str) -> Option<u64> {
    line.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 to 45 are one btrfs filesystem: whole, with subvolumes inside; two subvolumes; a bind
    /// mount of one; one over another mount; and one after a disk was added. 46 is another one.
    const MOUNTS: &str = r"22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
28 27 254:0 /srv /mnt/srv rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
29 27 0:26 / /tmp rw,relatime - tmpfs tmpfs rw
30 27 0:48 / /var/lib/btrfs rw - overlay overlay rw,lowerdir=/btrfs
40 27 0:39 / /whole rw,relatime - btrfs /dev/vdb rw,subvolid=5,subvol=/
41 27 0:39 /log /log rw,relatime - btrfs /dev/vdb rw,subvolid=256,subvol=/log
42 27 0:39 /snap /my\040snapshots rw shared:7 - btrfs /dev/vdb rw,subvolid=257,subvol=/snap
43 27 0:39 /log/a\040-\040b /bound rw,relatime - btrfs /dev/vdb rw,subvolid=256,subvol=/log
44 29 0:39 /snap /tmp rw,relatime - btrfs /dev/vdb rw,subvolid=257,subvol=/snap
45 27 0:39 /log /again rw,relatime - btrfs /dev/vdc rw,subvolid=256,subvol=/log
46 27 0:52 / /other rw,relatime - btrfs /dev/vdd rw,subvolid=5,subvol=/
60 27 0:60 / /tank rw - zfs tank rw,xattr
61 60 0:61 / /tank/a rw - zfs tank/a rw,xattr
62 60 0:62 / /tank/b/c rw - zfs tank/b/c rw,xattr
63 61 0:63 / /tank/a/.zfs/snapshot/old rw - zfs tank/a@old ro,xattr
64 27 0:61 /dir /bound\040too rw - zfs tank/a rw,xattr
65 27 0:65 / /tank2/a rw - zfs tank2/a rw,xattr
66 27 0:66 / /spaced/a rw - zfs my\040pool/a rw,xattr
67 27 0:67 / /spaced/b rw - zfs my\040pool/b\040b rw,xattr
68 27 0:68 / /spaced/c rw - zfs my\040heap/a rw,xattr
";

    /// The mounts of each list share one pool, and no two lists share one.
    #[track_caller]
    fn check_pools(lists: &[&[u64]]) {
        let mut pools: Vec<u64> = Vec::new();
        for list in lists {
            let of_list: Vec<Option<u64>> = list.iter().map(|id| pool(MOUNTS, *id)).collect();
            let first = of_list[0].expect("it is of a pool");
            assert!(of_list.iter().all(|pool| *pool == Some(first)), "{list:?}: {of_list:?}");
            assert!(!pools.contains(&first), "{list:?} has a pool of its own");
            assert!(first > u64::from(u32::MAX), "it cannot be a device number");
            pools.push(first);
        }
    }

    #[test]
    fn subvolumes_share_the_space_of_their_btrfs_however_they_are_mounted() {
        check_pools(&[&[40, 41, 42, 43, 44, 45], &[46]]);
    }

    #[test]
    fn datasets_share_the_space_of_their_zfs_pool() {
        check_pools(&[&[60, 61, 62, 63, 64], &[65], &[66, 67], &[68], &[40]]);
    }

    /// 29 has the mount point of 44, which hides it.
    #[test]
    fn other_filesystems_are_of_no_pool() {
        for mount in [22, 27, 28, 29, 30] {
            assert_eq!(pool(MOUNTS, mount), None, "{mount}");
        }
    }

    #[test]
    fn a_mount_that_is_not_told_of_as_expected_is_of_no_pool() {
        assert_eq!(pool(MOUNTS, 4), None, "it is not listed");
        for line in ["", "1", "1 2 0:3 / / rw", "1 2 - btrfs /dev/vdb rw", "1 2 0:3 / / rw - zfs"] {
            assert_eq!(pool(line, 1), None, "{line:?}");
        }
    }
}
