//! Bugs planted on purpose, so that checkers can be checked.
//!
//! Each bug has a name in [`ALL`] and stands in the code as a line of its own, `plant!("name" …)`,
//! or as a part of a condition or value, `planted("name")`. Without the feature `mutants` that is
//! the constant `false`, and no bug is compiled in. With the feature, `LOCKSTEP_MUTANT=name`
//! activates one bug for a process. `cargo xtask mutants` tries all of them.

/// Every planted bug: its name, and what it breaks.
pub const ALL: &[(&str, &str)] = &[
    ("acknowledge_before_sync", "raft's promises leave before the batch is durable"),
    ("acknowledge_when_full", "a batch that waits for disk space is reported as durable"),
    ("alone_in_state_only", "making one replica the group writes nothing of it to the log"),
    ("amend_nothing", "skipped entries and raised limits are not known to a halted replica"),
    ("answer_any_forwarded_call", "a call that was forwarded into another cluster is answered"),
    ("any_forwarded_lineage", "a call that another group of the name forwarded is answered"),
    ("any_lineage", "frames of another group of the same name are accepted"),
    ("append_without_applying", "a replica that applies nothing appends without a bound"),
    ("apply_again", "a rebuild applies the last entry of the snapshot again"),
    ("apply_repeated_calls", "a repeated call of a session is applied again"),
    ("apply_while_frozen", "commands and wake-ups reach the guest of a frozen group"),
    ("ask_for_nobody", "queries are put to the guest although their callers are gone"),
    ("ask_without_end", "peers are asked every two seconds for an object that none of them has"),
    ("await_nothing", "the apply lane is told that nobody waits for its answers"),
    ("bare_decode_errors", "a request that cannot be decoded is answered without a refusal"),
    ("believe_a_peers_desc", "an object that differs from the listed one of its name replaces it"),
    ("believe_any_address", "clients are sent to an address where another node answers"),
    ("believe_any_count", "any boot count, however far ahead, makes a lower one superseded"),
    ("believe_any_message", "raft is given messages that no correct replica sends"),
    ("believe_late_appends", "what an append said that arrived late is believed"),
    ("believe_older_boots", "frames from an earlier process of a replica are accepted"),
    ("believe_the_header", "an object counts as whole without being read"),
    ("capture_early", "a checkpoint's snapshot is taken before the checkpoint is applied"),
    ("capture_what_is_old", "a local snapshot is written although a newer one is listed"),
    ("checkpoint_for_each_want", "a leader makes a checkpoint for each request it cannot meet"),
    ("checkpoints_without_pause", "clients may ask for as many checkpoints as they like"),
    ("clean_for_ever", "an idle log moves its oldest entries again and again"),
    ("clock_in_apply", "the guest sees the machine's clock instead of the log's"),
    ("clock_in_snapshot", "a snapshot contains the machine's clock"),
    ("collect_late", "space is reserved before unneeded objects are deleted"),
    ("commit_alone", "a leader commits entries that only its own disk holds"),
    ("commit_falls", "a leader reports its applied index as its commit index"),
    ("corrupt_file_comes_back", "a damaged log file may come back after its segment was deleted"),
    ("count_what_hangs", "places held for a disk that hangs are missing to other groups"),
    ("delete_a_needed_segment", "a log segment that holds live entries is deleted"),
    ("delete_before_unlist", "objects are deleted before the log durably lists others"),
    ("delete_in_use", "objects are deleted while they are being read"),
    ("delete_listed", "objects that the log lists are deleted"),
    ("delete_promised", "objects promised to a follower are deleted"),
    ("delete_staging", "staging files are deleted while they are being written"),
    ("descriptors_end_the_log", "a log that lacks file descriptors is taken for broken"),
    ("end_twice", "a failed group then reports that it was told to stop"),
    ("events_go_back", "those who watch see a rebuilt guest's events again"),
    ("evict_young_sessions", "a session is evicted before its time"),
    ("failure_before_stop", "a node that was told to stop reports that its groups failed"),
    ("forget_cap", "a group may take more than its cap"),
    ("forget_reservation", "staging files do not count against the budget"),
    ("forget_that_it_diverged", "a replica that has diverged starts again as if it had not"),
    ("forget_vote", "the vote is not written"),
    ("full_for_ever", "groups are not told that the log's disk has space again"),
    ("give_up_unread", "an older recovery point is given up before the newest is read again"),
    ("halt_without_a_state", "a halted replica does not build the state before its entry"),
    ("halted_alone_asks_nobody", "a replica that halts where others go on asks for no snapshot"),
    ("heartbeats_wait", "heartbeats and votes wait behind the appends of other groups"),
    ("heed_an_old_fault", "a fault of a guest that was replaced halts its replica"),
    ("judge_old_news", "what a replica reported before it was repaired counts against it"),
    ("judge_without_a_majority", "the leader's own snapshot decides which replicas have diverged"),
    ("keep_a_corrupt_one", "the newest recovery point is spared though it is corrupt"),
    ("keep_an_unread_place", "a stream whose client does not read keeps space from the others"),
    ("keep_conflicting_suffix", "entries of a deposed leader stay in the window"),
    ("keep_damaged_log", "log that cannot be read is kept"),
    ("keep_every_segment", "log segments that nobody needs are kept"),
    ("lead_with_a_stalled_disk", "a leader whose disk hangs goes on leading"),
    ("lead_without_votes", "a candidate leads without a majority of the votes"),
    ("leak_parts", "broken transfers leave their staging files behind"),
    ("leak_unlisted", "objects that nobody needs are kept"),
    ("leave_a_name_unsynced", "the name of a directory that is there counts as durable"),
    ("leave_one_by_one", "the commands of a stream that ends lose their client one by one"),
    ("leave_sessions_open", "`lockstep apply` leaves its session open if the command fails"),
    ("led_by_the_silent", "a leader that was not heard for long is still named as the leader"),
    ("list_before_verify", "sealed objects are not read back"),
    ("log_without_bound", "the log takes the space that the next snapshot needs"),
    ("lose_the_cause", "a failed group reports that the node is shutting down"),
    ("lose_the_unbegun", "a transfer that never began is not reported"),
    ("lost_if_unknown", "a deposed leader reports its unfinished proposals as not applied"),
    ("make_what_is_gone", "a snapshot directory that is gone is made again"),
    ("memory_without_bound", "commands are accepted although memory is high"),
    ("mirrors_remember", "the copy of a guest keeps what a query wrote"),
    ("miss_what_was", "a caller that asks late does not hear how a group ended"),
    ("need_below_the_log", "a halted replica takes a snapshot that its log does not continue from"),
    ("never_ask", "a replica without a good snapshot asks no peer for one"),
    ("never_report", "raft is never told that a transfer ended"),
    ("no_fallback", "a start tries only the newest recovery point"),
    ("no_headroom", "snapshots take the log's headroom"),
    ("not_answered_is_lost", "a command that was applied without an answer is reported as lost"),
    ("offer_of_anybody", "the cluster of an offer is not checked"),
    ("outbound_without_bound", "a host sends any number of snapshots at once"),
    ("outlive_a_refusal", "a replica goes on although the log refused its job"),
    ("outrun_what_was_sent", "no more log is kept for a follower that is sent a long snapshot"),
    ("pass_the_refused", "a command of a stream is accepted after an earlier one was refused"),
    ("places_for_the_first", "one caller may take all places of a group's queries"),
    ("places_without_bound", "any number of groups take or restore snapshots at once"),
    ("promise_for_ever", "a refused offer keeps its object as one that broke off"),
    ("propose_for_nobody", "commands are proposed although their callers are gone"),
    ("queries_first", "commands wait until no query does"),
    ("read_before_applied", "reads do not wait for the apply lane"),
    ("read_for_ever", "a capture waits without end for the newest snapshot to be read"),
    ("read_without_quorum", "reads do not wait until a quorum confirms the leader"),
    ("rebuild_at_once", "a replica rebuilds its guest without waiting for its turn"),
    ("rebuild_for_nothing", "a guest is rebuilt although that frees no memory"),
    ("rebuild_unproven", "a guest is dropped before the snapshot to rebuild it from is read again"),
    ("refuse_silently", "refusals are neither counted nor logged"),
    ("rejoin_alone", "--rejoin begins a group anew that no other node has"),
    ("relief_overtakes", "a command with relief overtakes earlier ones of its stream without it"),
    ("relief_without_bound", "waiting commands are proposed however high memory is by then"),
    ("rely_on_peers", "a replica without a guest never tries its own snapshots again"),
    ("removed_by_one_word", "one node's word removes a replica"),
    ("removed_is_failed", "a replica that left its group is taken for a failed one"),
    ("repair_unasked", "a replica that has diverged takes another's snapshot by itself"),
    ("report_twice", "a transfer that ended ends again when its channel breaks"),
    ("restore_beside", "the old guest is kept while a snapshot is restored into another"),
    ("resume_unverified", "blocks of a suspended transfer are taken without being read"),
    ("retry_failed_sync", "a failed sync is retried and its success is believed"),
    ("reuse_a_bad_object", "a bad object of the same name is kept"),
    ("rot_is_a_tear", "a damaged batch of the last segment ends the log, whatever follows it"),
    ("serve_what_diverged", "a replica that has diverged goes on offering its snapshots"),
    ("session_is_its_index", "the index of a session's entry is its whole id"),
    ("sessions_forget", "sessions do not outlive a restore"),
    ("share_a_snapshot_directory", "a snapshot-dir is used without a lock"),
    ("short_is_corrupt", "a snapshot unread for lack of descriptors counts as corrupt"),
    ("skip_fsync", "batches are written and not synced"),
    ("skip_not_kept", "an entry that is skipped reaches the guest all the same"),
    ("skip_segment_directory_sync", "a segment's name is not synced"),
    ("skip_snapshot_directory_sync", "an object's name is not synced"),
    ("skip_want_digest", "any object repairs a corrupt one"),
    ("skip_what_was_applied", "an entry is skipped that a voter may have applied"),
    ("space_for_each_subvolume", "subvolumes and datasets of one pool count as separate disks"),
    ("stage_elsewhere", "staging files lie outside the group's directory"),
    ("stamp_own_clock", "a leader stamps whatever its own clock says"),
    ("start_from_what_is_undone", "a replica starts from a snapshot that contains what is skipped"),
    ("suspended_for_itself", "a suspended transfer is not deleted to free space for another group"),
    ("sweep_below_newest", "a start keeps objects above the newest recovery point"),
    ("sweep_if_listed", "a start deletes nothing if nothing is listed"),
    ("sweep_without_state", "snapshots are deleted although the log does not know their group"),
    ("switch_before_the_entry", "a replica goes over to a module that it was only to try"),
    ("take_any_snapshot", "a snapshot whose configuration lacks the receiver is accepted"),
    ("take_early_blocks", "blocks are accepted before there is space reserved for them"),
    ("take_for_what_hangs", "places are given for work on a disk that hangs"),
    ("timer_not_in_envelope", "a snapshot does not hold what the guest's timer is set to"),
    ("truncate_too_far", "the log is cut up to the newest recovery point"),
    ("trust_every_halt", "a replica that halts says that it has never applied the entry"),
    ("two_votes", "the vote is forgotten at a start"),
    ("unchecked_segment", "a log record's checksum is not checked"),
    ("unread_is_whole", "a snapshot that could not be read for want of descriptors counts as read"),
    ("unread_restore_halts", "a snapshot that cannot be read for a restore halts the replica"),
    ("upgrade_under_commands", "commands go on while states are moved, and are not in the copies"),
    ("wait_for_a_capture", "a capture that does not end keeps a leader from making checkpoints"),
    ("wait_for_a_checkpoint", "a replica short of space takes snapshots at checkpoints only"),
    ("wait_for_a_peers_snapshot", "a replica that needs a snapshot does not start from its own"),
    ("wait_for_the_absent", "a node without groups waits for one to end"),
    ("wait_for_the_cut", "a halted replica gets a snapshot only once the leader's log is cut"),
    ("wait_for_the_silent", "a checkpoint is made again while a silent replica lacks it"),
    ("wake_again", "a deadline stays pending after the guest was woken"),
    ("wake_early", "a leader proposes to wake the guest before its deadline"),
    ("wake_without_end", "a leader proposes to wake the guest at every tick"),
    ("who_waits_has_space", "a voter that waits for a snapshot counts as one that takes commands"),
    ("window_forgets", "a snapshot is restored without the events that it holds"),
    ("wiped_replica_votes", "a wiped node comes back under its old id"),
    ("write_at_rest", "a replica writes its state although nothing in it changed"),
    ("write_beside_unsettled_names", "a start writes its log beside files that may come back"),
    ("write_on_in_a_damaged_segment", "batches go on into a log segment that was found damaged"),
    ("write_other_bytes", "the log writes other bytes than it was given"),
    ("zero_is_unchecked", "an object whose declared digest is zero is accepted unchecked"),
];

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();

/// Whether the bug of this name is active in this process.
#[cfg(feature = "mutants")]
pub fn planted(name: &str) -> bool {
    debug_assert!(ALL.iter().any(|(known, _)| *known == name), "{name} is not in the list");
    let chosen = CHOSEN.get_or_init(|| {
        let chosen = std::env::var("LOCKSTEP_MUTANT").ok()?;
        assert!(ALL.iter().any(|(known, _)| *known == chosen), "there is no bug {chosen:?}");
        Some(chosen)
    });
    chosen.as_deref() == Some(name)
}

/// Whether the bug of this name is active: never, without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// A planted bug that is a line of its own: `plant!("name" does return true);` does what is wrong,
/// `plant!("name" skips check()?);` leaves out what is right.
#[macro_export]
macro_rules! plant {
    ($name:literal does $wrong:expr) => {
        if $crate::mutant::planted($name) {
            $wrong
        }
    };
    ($name:literal skips $right:expr) => {
        if !$crate::mutant::planted($name) {
            $right
        }
    };
}
pub use crate::plant;
