//! Disks that hang, with real filesystems, where this machine has them to give.

use lockstep_tests::stall;
use lockstep_tests::tell::Teller;

/// Long enough for a follower's hang, a third of it, to be noticed.
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
