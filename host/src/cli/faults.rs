//! `lockstep faults`: why replicas are halted, and the ways to go on.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_client::Client;
use lockstep_client::v1::{FaultResponse, StatusResponse};
use lockstep_core::ids::hex;
use tokio::task::JoinSet;

use crate::cli::remote::Target;
use crate::cli::status::{ask_all, nobody_answers, unreachable};
use crate::cli::{Failure, Outcome};
use crate::kit::text::text_or_hex;
use crate::logging::out;

/// The exit code if a replica is halted, or may be.
const IMPAIRED: u8 = 4;

/// Show why replicas are halted: the entry, how the state machine failed, and the ways to go on.
#[derive(clap::Args)]
#[command(after_help = "\
Example: lockstep faults --endpoint 127.0.0.1:7101,127.0.0.1:7102 --commands

Exit codes: 0 every node answers, and no replica is halted; 1 no node answers; 2 usage; 4 a replica
is halted, or a node does not answer.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Show the entry's commands, too.
    #[arg(long)]
    commands: bool,
    /// Print one JSON object for each halted replica, and one for each node that does not answer,
    /// on lines of their own.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Outcome {
    let client = args.target.client()?;
    let (answers, silent) = ask_all(&client).await?;
    let nodes = nodes_of_one_group(answers)?;
    let faults = Faults::ask(&client, nodes, args.commands, silent).await?;
    let lines = if args.json { faults.in_json() } else { faults.in_text() };
    lines.iter().for_each(|line| out!("{line}"));
    match faults.code() {
        0 => Ok(()),
        code => Err(Failure::Unwell(code)),
    }
}

/// The addresses of the nodes, if all their groups are one: a fault is asked for by its group.
fn nodes_of_one_group(answers: Vec<StatusResponse>) -> Result<Vec<String>, Failure> {
    let groups = answers.iter().flat_map(|node| &node.groups);
    let names: BTreeSet<&str> = groups.map(|group| group.name.as_str()).collect();
    if names.len() > 1 {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Failure::Usage(format!("name a group with --group: the nodes have {names}")));
    }
    let having = answers.into_iter().filter(|node| !node.groups.is_empty());
    Ok(having.map(|node| node.address).collect())
}

/// What the nodes of a group say.
#[derive(Default)]
struct Faults {
    /// In the order of their nodes.
    halted: Vec<FaultResponse>,
    /// Why nodes gave no answer, by address.
    silent: BTreeMap<String, String>,
}

impl Faults {
    /// Asks nodes; `silent` are those that did not answer before.
    async fn ask(
        client: &Client,
        nodes: Vec<String>,
        commands: bool,
        mut silent: BTreeMap<String, String>,
    ) -> Result<Self, Failure> {
        let mut asking = JoinSet::new();
        for at in nodes {
            let client = client.clone();
            asking.spawn(async move {
                let answer = client.fault(&at, commands).await;
                (at, answer)
            });
        }
        let mut answers = Vec::new();
        while let Some(told) = asking.join_next().await {
            match told.expect("no call panics") {
                (_, Ok(answer)) => answers.push(answer),
                (at, Err(error)) => drop(silent.insert(at, error.to_string())),
            }
        }
        if answers.is_empty() && !silent.is_empty() {
            return Err(nobody_answers(&silent));
        }
        answers.retain(|told| !told.cause.is_empty());
        answers.sort_by_key(|told| told.node);
        Ok(Self { halted: answers, silent })
    }

    fn code(&self) -> u8 {
        if self.halted.is_empty() && self.silent.is_empty() { 0 } else { IMPAIRED }
    }

    fn in_json(&self) -> Vec<String> {
        let halted = self.halted.iter().map(replica_in_json);
        let silent = self.silent.iter().map(|(at, why)| unreachable(at, why));
        halted.chain(silent).map(|object| object.to_string()).collect()
    }

    fn in_text(&self) -> Vec<String> {
        let halted = self.halted.iter().map(replica_in_text);
        let silent = self.silent.iter().map(|(at, why)| format!("no answer from {at}: {why}"));
        halted.chain(silent).chain([self.ways_to_go_on()]).collect()
    }

    /// What an operator can do.
    fn ways_to_go_on(&self) -> String {
        let Self { halted, silent } = self;
        let entries: BTreeSet<u64> = halted.iter().map(|told| told.entry).collect();
        let is_diverged = halted.iter().any(|told| told.applied_by > 0);
        let text = match entries.into_iter().collect::<Vec<_>>().as_slice() {
            [] if silent.is_empty() => "no replica is halted",
            [] => "no replica that answers is halted",
            _ if is_diverged => {
                "a replica that halts where another one goes on has diverged from it, and \
                 continues from its snapshot by itself"
            }
            [0] => "no entry is to blame: the cause says what to do",
            [entry] => return self.ways_past(*entry),
            [0, ..] => {
                "the replicas are halted for different reasons: each one's cause says what to do"
            }
            [_, ..] => {
                "the replicas are halted at different entries: each one's cause says what to do"
            }
        };
        text.to_owned()
    }

    /// The orders that take a group past the entry at which its replicas are halted.
    fn ways_past(&self, entry: u64) -> String {
        let limited = self.halted.iter().find(|told| told.class.starts_with("out of "));
        let raise = match limited.map(|told| told.class.as_str()) {
            Some("out of memory") => "\n  lockstep limits --memory SIZE    with more memory",
            Some(_) => "\n  lockstep limits --command-fuel N  with more fuel",
            None => "",
        };
        let all_are_sure =
            self.silent.is_empty() && self.halted.iter().all(|told| told.never_applied);
        let abandon = if all_are_sure { "" } else { " --abandon NODE" };
        format!(
            "ways to go on:{raise}\n  \
             lockstep upgrade start FSM.wasm --resume-at {entry}{abandon}    with another \
             module\n  \
             lockstep skip --index {entry}{abandon}    without the entry"
        )
    }
}

fn replica_in_text(told: &FaultResponse) -> String {
    if told.entry == 0 {
        return format!("node {}: {}", told.node, told.cause);
    }
    let mut text = format!("node {} is halted at entry {}", told.node, told.entry);
    text += &format!("\n  fault    {} in {}: {}", told.class, told.call, told.message);
    text += &format!("\n  module   {}", hex(&told.module));
    text += &match told.stands_at {
        0 => "\n  queries  none are answered".to_owned(),
        index => format!("\n  queries  local ones are answered, as of entry {index}"),
    };
    if !told.never_applied {
        text += "\n  before   the replica may have applied the entry before it was last started";
    }
    if told.applied_by > 0 {
        text += &format!("\n  diverged node {} applied the entry", told.applied_by);
    }
    if told.command_count > 0 {
        text += &format!("\n  commands {}", told.command_count);
    }
    for command in &told.commands {
        text += &format!("\n    {}", text_or_hex(command));
    }
    text
}

fn replica_in_json(told: &FaultResponse) -> serde_json::Value {
    serde_json::json!({
        "node": told.node,
        "cause": told.cause,
        "entry": told.entry,
        "class": told.class,
        "call": told.call,
        "message": told.message,
        "module": hex(&told.module),
        "never_applied": told.never_applied,
        "stands_at": told.stands_at,
        "applied_by": told.applied_by,
        "command_count": told.command_count,
        "commands": told.commands.iter().map(|command| text_or_hex(command)).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use lockstep_client::v1::GroupStatus;

    use super::*;

    /// A replica that is halted at an entry that it never applied.
    fn halted(node: u32, entry: u64) -> FaultResponse {
        FaultResponse {
            node,
            cause: format!("the cause of node {node}"),
            entry,
            class: "trap".to_owned(),
            call: "apply".to_owned(),
            message: "boom".to_owned(),
            module: vec![0xab].into(),
            never_applied: true,
            ..FaultResponse::default()
        }
    }

    fn faults(halted: &[FaultResponse], silent: &[&str]) -> Faults {
        let silent = silent.iter().map(|at| ((*at).to_owned(), "refused".to_owned())).collect();
        Faults { halted: halted.to_vec(), silent }
    }

    #[test]
    fn the_ways_to_go_on_follow_from_the_faults() {
        let check = |halted: &[FaultResponse], silent: &[&str], code, expect: &str| {
            let faults = faults(halted, silent);
            assert_eq!((faults.ways_to_go_on().as_str(), faults.code()), (expect, code));
        };
        let ways = |abandon: &str| {
            format!(
                "ways to go on:\n  \
                 lockstep upgrade start FSM.wasm --resume-at 7{abandon}    with another module\n  \
                 lockstep skip --index 7{abandon}    without the entry"
            )
        };
        let (skip, abandon) = (&ways(""), &ways(" --abandon NODE"));
        let more = |raise: &str| skip.replace(":\n", &format!(":\n  {raise}\n"));
        let unsure = FaultResponse { never_applied: false, ..halted(2, 7) };
        let diverged = FaultResponse { applied_by: 3, ..halted(2, 7) };
        let limited =
            |class: &str| [FaultResponse { class: class.to_owned(), ..halted(1, 7) }, halted(2, 7)];
        let of_itself = "a replica that halts where another one goes on has diverged from it, \
                         and continues from its snapshot by itself";

        check(&[], &[], 0, "no replica is halted");
        check(&[], &["b:1"], 4, "no replica that answers is halted");
        check(&[halted(1, 0)], &[], 4, "no entry is to blame: the cause says what to do");
        check(
            &[halted(1, 0), halted(2, 0)],
            &["b:1"],
            4,
            "no entry is to blame: the cause says what to do",
        );
        check(&[halted(1, 7), halted(2, 7)], &[], 4, skip);
        check(&[halted(1, 7)], &["b:1"], 4, abandon);
        check(&[halted(1, 7), unsure], &[], 4, abandon);
        let memory = more("lockstep limits --memory SIZE    with more memory");
        check(&limited("out of memory"), &[], 4, &memory);
        let fuel = more("lockstep limits --command-fuel N  with more fuel");
        check(&limited("out of fuel"), &[], 4, &fuel);
        check(&[halted(1, 7), diverged.clone()], &[], 4, of_itself);
        check(&[halted(1, 9), diverged], &[], 4, of_itself);
        check(
            &[halted(1, 7), halted(2, 9)],
            &[],
            4,
            "the replicas are halted at different entries: each one's cause says what to do",
        );
        check(
            &[halted(1, 7), halted(2, 0)],
            &[],
            4,
            "the replicas are halted for different reasons: each one's cause says what to do",
        );
    }

    #[test]
    fn halted_replicas_and_silent_nodes_are_told() {
        let check = |replica: FaultResponse, text: &[&str], json: &str| {
            let faults = faults(&[replica], &["b:1", "c:1"]);
            let said = faults.in_text();
            assert_eq!(said[0].lines().collect::<Vec<_>>(), text);
            assert_eq!(said[1..3], ["no answer from b:1: refused", "no answer from c:1: refused"]);
            assert_eq!(said[3..], [faults.ways_to_go_on()]);
            let said = faults.in_json();
            assert_eq!(said[0], json);
            assert_eq!(said[1], r#"{"error":"refused","unreachable":"b:1"}"#);
            assert_eq!(said.len(), 3);
        };
        check(
            FaultResponse { stands_at: 6, ..halted(1, 7) },
            &[
                "node 1 is halted at entry 7",
                "  fault    trap in apply: boom",
                "  module   ab",
                "  queries  local ones are answered, as of entry 6",
            ],
            concat!(
                r#"{"applied_by":0,"call":"apply","cause":"the cause of node 1","class":"trap","#,
                r#""command_count":0,"commands":[],"entry":7,"message":"boom","module":"ab","#,
                r#""never_applied":true,"node":1,"stands_at":6}"#
            ),
        );
        let commands = vec!["set a 1".into(), vec![0xff].into()];
        check(
            FaultResponse {
                never_applied: false,
                applied_by: 3,
                command_count: 2,
                commands,
                ..halted(2, 7)
            },
            &[
                "node 2 is halted at entry 7",
                "  fault    trap in apply: boom",
                "  module   ab",
                "  queries  none are answered",
                "  before   the replica may have applied the entry before it was last started",
                "  diverged node 3 applied the entry",
                "  commands 2",
                "    set a 1",
                "    0xff",
            ],
            concat!(
                r#"{"applied_by":3,"call":"apply","cause":"the cause of node 2","class":"trap","#,
                r#""command_count":2,"commands":["set a 1","0xff"],"entry":7,"message":"boom","#,
                r#""module":"ab","never_applied":false,"node":2,"stands_at":0}"#
            ),
        );
        check(
            FaultResponse {
                cause: "the disk is gone".to_owned(),
                node: 3,
                ..FaultResponse::default()
            },
            &["node 3: the disk is gone"],
            concat!(
                r#"{"applied_by":0,"call":"","cause":"the disk is gone","class":"","#,
                r#""command_count":0,"commands":[],"entry":0,"message":"","module":"","#,
                r#""never_applied":false,"node":3,"stands_at":0}"#
            ),
        );
    }

    #[test]
    fn the_nodes_of_one_group_are_asked() {
        let node = |address: &str, groups: &[&str]| {
            let group = |name: &&str| GroupStatus { name: (*name).into(), ..Default::default() };
            let (address, groups) = (address.to_owned(), groups.iter().map(group).collect());
            StatusResponse { address, groups, ..StatusResponse::default() }
        };
        let asked = nodes_of_one_group(vec![node("a:1", &["g"]), node("b:1", &[])]);
        assert_eq!(asked.expect("they have one group"), ["a:1"]);
        match nodes_of_one_group(vec![node("a:1", &["g"]), node("b:1", &["h", "g"])]) {
            Err(Failure::Usage(why)) => {
                assert_eq!(why, "name a group with --group: the nodes have g, h");
            }
            other => panic!("{other:?}"),
        }
    }
}
