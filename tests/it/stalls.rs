//! Disks that hang, on real filesystems, where this machine can mount and freeze them.

use lockstep_tests::stall;
use lockstep_tests::tell::Teller;

/// How long the leader's disk hangs. A follower's hangs for a third of that, which must be long
/// enough to be noticed.
const SECONDS: u64 = 9;

#[tokio::test]
async fn a_disk_that_hangs_holds_up_nobody_but_its_node() {
    if let Some(what) = stall::lacks() {
        eprintln!("skipped: {what}");
        return;
    }
    let mut tell = Teller::new("Disks that hang");
    stall::run(SECONDS, &mut tell).await.expect("the group goes on");
}
