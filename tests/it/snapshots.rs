//! `lockstep snapshot` on real directories: what it says of each object, that it changes nothing,
//! and which objects a running node holds.

use std::path::{Path, PathBuf};

use lockstep_tests::cluster::Cluster;

use crate::solo::{GROUP, apply, assert_says, contents, lockstep, spec};

/// Names of the snapshot objects, oldest first.
fn objects(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("there are snapshots");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "fsnap")).collect();
    found.sort();
    found
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).expect("it is there");
    bytes[at] ^= 1;
    std::fs::write(file, bytes).expect("it can be written");
}

/// Runs `lockstep snapshot` on a data directory, which must not change; returns the exit code and
/// what was printed.
async fn look(command: &str, data: &Path) -> (Option<i32>, String) {
    let before = contents(data);
    let data_dir = data.display().to_string();
    let output = lockstep(&["snapshot", command, "--data-dir", &data_dir]).await;
    assert!(contents(data) == before, "`snapshot {command}` touched something");
    (output.code, output.stdout + &output.stderr)
}

/// The line about one file.
fn line<'a>(text: &'a str, file: &Path) -> &'a str {
    let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
    let found = text.lines().find(|line| line.contains(name));
    found.unwrap_or_else(|| panic!("nothing is said of {name}: {text}"))
}

#[tokio::test]
async fn each_object_is_told_what_it_is_good_for() {
    let mut cluster = Cluster::start(spec()).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("its address is valid");
    let dir = cluster.data_dir(1).join("groups").join(GROUP).join("snap");
    let mut first = None;
    for round in 0..3 {
        apply(&client, &format!("set round {round}")).await;
        cluster.capture(&client, GROUP).await.expect("it takes a snapshot");
        let name = objects(&dir).pop().expect("one was taken");
        let bytes = std::fs::read(&name).expect("it is there");
        first.get_or_insert((name, bytes));
    }
    let (unlisted, bytes) = first.expect("there was a first one");

    // Only a running node knows who holds an object.
    let config = cluster.config_file(1).display().to_string();
    let running = lockstep(&["snapshot", "list", "--config", &config]).await;
    assert_says(&running.stdout, &["HELD", " -  "]);
    cluster.stop_all().await.expect("it stops");
    let stopped = lockstep(&["snapshot", "list", "--config", &config]).await;
    assert_says(&stopped.stdout, &["HELD", " ?  "]);

    let data = cluster.data_dir(1);
    let both = objects(&dir);
    let [older, newest] = &both[..] else { panic!("two are listed: {both:?}") };
    let (code, text) = look("verify", &data).await;
    assert_eq!((code, text.matches("good").count()), (Some(0), 2), "{text}");

    std::fs::write(&unlisted, &bytes).expect("it can be put back");
    let (code, text) = look("why", &data).await;
    assert_eq!(code, Some(0), "{text}");
    assert_says(line(&text, &unlisted), &[" no ", "the log does not list it"]);
    assert_says(line(&text, newest), &[" yes ", "good"]);
    std::fs::remove_file(&unlisted).expect("it can be removed");

    let good = std::fs::read(newest).expect("it is there");
    flip(newest, good.len() / 2);
    let (code, text) = look("verify", &data).await;
    assert_eq!(code, Some(1), "{text}");
    assert_says(line(&text, newest), &["does not match its checksum"]);
    assert_says(line(&text, older), &["good"]);
    assert_says(&text, &["bad objects: 1"]);

    std::fs::remove_file(newest).expect("it can be removed");
    for command in ["list", "verify", "why"] {
        let (code, text) = look(command, &data).await;
        assert_eq!(code, Some(i32::from(command == "verify")), "{text}");
        assert_says(line(&text, newest), &[" yes ", "its file is missing"]);
    }
    std::fs::write(newest, &good).expect("it can be put back");

    // Other commands follow the damaged one, so no start could take it for a torn tail.
    let (segment, at) = crate::data_dir::find_in_log(&cluster, "round 0");
    flip(&segment, at);
    let (code, text) = look("why", &data).await;
    assert_eq!(code, Some(0), "{text}");
    assert_says(line(&text, newest), &[" ? ", "the log cannot be read", "corrupt"]);
    assert_says(&text, &["cannot tell which snapshots are listed"]);
}

/// If the filesystem of the snapshots is not mounted, a node refuses to start and does not use the
/// mount point below.
#[tokio::test]
async fn a_snapshot_directory_that_is_gone_is_named() {
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let mut spec = spec();
    let mounted = elsewhere.path().join("mounted");
    std::fs::create_dir(&mounted).expect("it is made");
    spec.groups[0].settings.push(format!("snapshot-dir = {:?}", mounted.display().to_string()));
    let mut cluster = Cluster::start(spec).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    let client = cluster.client().expect("its address is valid");
    apply(&client, "set a 1").await;
    cluster.capture(&client, GROUP).await.expect("it takes a snapshot");
    cluster.stop_all().await.expect("it stops");

    let away = elsewhere.path().join("away");
    std::fs::rename(&mounted, &away).expect("it can be moved");
    std::fs::create_dir(&mounted).expect("the mount point is left");
    let config = cluster.config_file(1).display().to_string();
    let refused = lockstep(&["serve", "--config", &config]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_says(&refused.stderr, &["is missing", "owner is not there", "mount its filesystem"]);
    assert!(contents(&mounted).is_empty(), "nothing was made there");

    std::fs::remove_dir(&mounted).and_then(|()| std::fs::rename(&away, &mounted)).expect("back");
    cluster.start_node(1).expect("it starts");
    cluster.wait_serving(GROUP).await.expect("it serves");
    cluster.stop_all().await.expect("it stops");
}
