//! Bugs planted on purpose, so that checkers can be checked.
//!
//! Each has a name in [`ALL`] and stands in the code as `planted("name")`. Without the feature
//! `mutants` that is a constant `false`, and nothing of it is left in the program. With it,
//! `LOCKSTEP_MUTANT=name` puts one of them into a process. `cargo xtask mutants` tries all of them.

/// Every planted bug: its name, and what it breaks.
pub const ALL: &[(&str, &str)] = &[
    ("acknowledge_before_sync", "raft's promises leave before the batch is durable"),
    ("acknowledge_when_full", "a batch that waits for room is told to be durable"),
    ("alone_in_state_only", "a log does not say that all but one of its replicas are lost"),
    ("any_lineage", "frames of another group of the name are taken"),
    ("append_without_applying", "a replica that applies nothing appends without a bound"),
    ("apply_again", "a rebuild begins with the last entry that is in the snapshot"),
    ("apply_repeated_calls", "a repeated call of a session is applied again"),
    ("ask_for_nobody", "queries are asked although whoever sent them left"),
    ("await_nothing", "the apply lane is told that nobody waits for what it applies"),
    ("ask_without_end", "peers are asked every two seconds for what none of them has"),
    ("believe_any_count", "any count of starts makes a lower one superseded"),
    ("believe_any_message", "raft is given what no replica that keeps to the rules sends"),
    ("believe_older_boots", "what an older life of a replica says is taken"),
    ("believe_the_header", "an object is taken for good unread"),
    ("capture_early", "a mark's snapshot is taken before the mark is applied"),
    ("capture_what_is_old", "a local snapshot is written though a newer one is listed"),
    ("clean_for_ever", "an idle log moves its oldest entries, again and again"),
    ("clock_in_apply", "the guest sees the machine's clock instead of the log's"),
    ("clock_in_snapshot", "the machine's clock stands in a snapshot"),
    ("collect_late", "room is asked for before what nobody needs was removed"),
    ("commit_alone", "a leader commits what it has durably itself"),
    ("commit_falls", "a leader tells what it applied for what is committed"),
    ("delete_a_needed_segment", "a log segment goes that holds live entries"),
    ("delete_before_unlist", "objects go before the log durably lists others"),
    ("delete_leased", "objects go while somebody reads them"),
    ("delete_listed", "objects go that the log lists"),
    ("delete_promised", "objects go that a follower was promised"),
    ("delete_staging", "staging files go while somebody writes them"),
    ("descriptors_end_the_log", "a log that can open nothing is taken for broken"),
    ("end_twice", "a group that failed says behind it that it was told to stop"),
    ("evict_young_sessions", "a session makes room for another before its time"),
    ("failure_before_stop", "a node that was told to stop says that its groups failed"),
    ("forget_cap", "a group may take more than its cap"),
    ("forget_reservation", "staging files take nothing from the budget"),
    ("forget_vote", "the vote is not written"),
    ("full_for_ever", "nobody hears that there is room again"),
    ("give_up_unread", "an older recovery point goes and the newest was not read again"),
    ("halt_without_a_state", "a halted replica does not build the state before its entry"),
    ("halted_alone_asks_nobody", "a replica that halts where others go on asks for no snapshot"),
    ("heed_an_old_fault", "a fault of a guest that was replaced halts its replica"),
    ("keep_a_rotten_one", "the newest recovery point is spared though it is rotten"),
    ("keep_conflicting_suffix", "entries of a deposed leader stay in the window"),
    ("keep_damaged_log", "log that cannot be read stays"),
    ("keep_every_segment", "log segments stay that nobody needs"),
    ("lead_with_a_stalled_disk", "a leader whose disk hangs goes on leading"),
    ("lead_without_votes", "whoever campaigns leads"),
    ("leak_parts", "broken transfers leave their staging files"),
    ("leak_unlisted", "objects stay that nobody needs"),
    ("list_before_verify", "sealed objects are not read back"),
    ("log_without_bound", "the log takes the room that the next snapshot needs"),
    ("lose_the_cause", "a group that failed says that the node shuts down"),
    ("lose_the_unbegun", "a transfer that never began is reported by nobody"),
    ("lost_if_unknown", "whoever is deposed says that what it proposed was not applied"),
    ("miss_what_was", "whoever asks later does not hear how a group ended"),
    ("mark_for_each_want", "a leader makes a mark for each request that it cannot meet"),
    ("marks_without_pause", "clients may ask for as many marks as they like"),
    ("memory_without_bound", "commands are taken although memory is high"),
    ("mirrors_remember", "the copy of a guest keeps what a query wrote"),
    ("need_below_the_log", "a halted replica takes a snapshot that its log does not go on from"),
    ("never_ask", "a replica without a good snapshot asks nobody"),
    ("never_report", "raft hears of no transfer's end"),
    ("no_fallback", "a start tries the newest recovery point only"),
    ("no_headroom", "snapshots take the room that is the log's"),
    ("not_answered_is_lost", "what was applied without an answer is told to be lost"),
    ("offer_of_anybody", "the cluster of an offer is not looked at"),
    ("outbound_without_bound", "any number of transfers leaves a host at once"),
    ("outlive_a_refusal", "a replica goes on whose job the log refused"),
    ("outrun_what_was_sent", "no more log is kept for who is sent a long snapshot than for others"),
    ("pass_the_refused", "a command of a stream is taken behind one that was refused"),
    ("places_for_the_first", "one caller may take all places of a group's queries"),
    ("places_without_bound", "any number of groups takes a snapshot or restores one at once"),
    ("propose_for_nobody", "commands are proposed although whoever sent them left"),
    ("queries_first", "commands wait until no query does"),
    ("parked_for_itself", "a parked transfer makes no room for another group"),
    ("read_before_applied", "reads do not wait for the apply lane"),
    ("read_without_quorum", "reads do not wait for the followers' word"),
    ("rebuild_at_once", "every replica rebuilds its guest when it likes"),
    ("rebuild_for_nothing", "a guest is rebuilt though that gives nothing back"),
    ("rebuild_unproven", "a guest goes and the snapshot to build it from was not read again"),
    ("refuse_silently", "refusals are neither counted nor logged"),
    ("removed_is_failed", "a replica that left its group is taken for a failed one"),
    ("removed_by_one_word", "one node's word removes a replica"),
    ("report_twice", "a transfer that ended ends again when its channel breaks"),
    ("restore_beside", "the old guest stays while a snapshot is restored into another"),
    ("resume_unverified", "blocks of a parked transfer are taken unseen"),
    ("retry_failed_sync", "a failed sync is tried again and taken for good"),
    ("reuse_a_bad_object", "a bad object of the same name is kept"),
    ("rot_is_a_tear", "a damaged batch of the last segment ends the log, whatever is behind it"),
    ("rotten_file_comes_back", "a damaged log file is not gone for good when its segment is"),
    ("session_is_its_index", "a session is known by its entry's index alone"),
    ("sessions_forget", "sessions do not outlive a restore"),
    ("short_is_rotten", "a snapshot that cannot be read for want of descriptors counts as rotten"),
    ("skip_fsync", "batches are written and not synced"),
    ("skip_segment_directory_sync", "a segment's name is not synced"),
    ("skip_snapshot_directory_sync", "an object's name is not synced"),
    ("skip_want_digest", "any object repairs a rotten one"),
    ("stage_elsewhere", "staging files lie beside the group's directory"),
    ("stamp_own_clock", "a leader stamps whatever its own clock says"),
    ("sweep_below_newest", "a start leaves what lies above the newest recovery point"),
    ("sweep_if_listed", "a start removes nothing if nothing is listed"),
    ("sweep_without_state", "snapshots go though the log does not know their group"),
    ("take_any_snapshot", "a snapshot whose configuration lacks the receiver is taken"),
    ("take_early_blocks", "blocks are taken before there is room for them"),
    ("truncate_too_far", "the log is cut up to the newest recovery point"),
    ("two_votes", "the vote is forgotten at a start"),
    ("unchecked_segment", "a log record's checksum is not looked at"),
    ("unread_is_whole", "a snapshot that could not be read for want of descriptors counts as read"),
    ("unread_restore_halts", "a snapshot that cannot be read for a restore halts the replica"),
    ("wait_for_a_mark", "a replica short of room takes a snapshot at marks only"),
    ("wait_for_the_absent", "a node without groups is not over"),
    ("wait_for_the_cut", "a halted replica gets a snapshot only once the leader's log is cut"),
    ("who_waits_has_room", "a voter that waits for a snapshot counts as one that takes commands"),
    ("wiped_replica_votes", "a wiped node comes back under its old id"),
    ("write_beside_unsettled_names", "a start writes its log beside files that may come back"),
    ("write_other_bytes", "the log holds other bytes than were handed in"),
    ("write_at_rest", "a replica writes its state though nothing in it changed"),
    ("zero_is_unchecked", "an object of no digest is taken as it comes"),
];

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();

/// Whether the bug of this name is in the program now.
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

/// Whether the bug of this name is in the program now: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}
