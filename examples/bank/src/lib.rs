//! Accounts and transfers, made to show lost and repeated commands.
//!
//! Commands and their answers:
//!
//! * `open A AMOUNT`: ok, the balance; rejected if there is an A already;
//! * `transfer ID FROM TO AMOUNT`: ok, the two new balances; rejected if an account is unknown,
//!   both are the same, or FROM holds less.
//!
//! Queries:
//!
//! * `balance A`: the balance; an error if there is no A;
//! * `total`: the sum of all balances;
//! * `count ID`: how often the transfer with this id was applied;
//! * `duplicates`: the number of ids that were applied more than once;
//! * `transfers`: the number of ids that were applied.
//!
//! Names and ids are words; amounts are whole numbers, at least 0 (`open`) or 1 (`transfer`).
//!
//! The bank never removes duplicates: an id that arrives twice moves money twice and counts twice.
//! That is the point: it lets a test see whether the host kept its promise. **Every well-formed
//! transfer counts, rejected ones too**: it reached the state machine and was executed, with a
//! rejection as its outcome. Only a malformed one, which has no trustworthy id, counts nowhere.
//!
//! Transfers conserve the total. The snapshot is canonical: the accounts in the order of their
//! names, then the ids in their order with their counts.

use lockstep_guest::{
    Context, DetMap, Failure, Info, Outcome, SnapshotHeader, SnapshotReader, SnapshotWriter,
    StateMachine,
};

/// The longest name or id, in bytes: enough for a UUID, or a host name with a number.
pub const WORD_BYTES_MAX: usize = 128;

/// Every account, and how often each transfer was applied.
#[derive(Default)]
pub struct Bank {
    /// Balances by name. Their sum fits 64 bits.
    accounts: DetMap<String, u64>,
    /// Counts by transfer id; none is 0.
    applied: DetMap<String, u64>,
}

impl StateMachine for Bank {
    const INFO: Info = Info {
        name: "bank",
        version: env!("CARGO_PKG_VERSION"),
        snapshot_format: 1,
        oldest_readable_format: 1,
    };

    fn init(_: &Context, config: &[u8]) -> Result<Self, Failure> {
        if !config.is_empty() {
            return Err(Failure::InvalidConfig("bank has nothing to configure".to_owned()));
        }
        Ok(Self::default())
    }

    fn apply(&mut self, _: &Context, command: &[u8]) -> Outcome {
        let done = words(command).and_then(|words| match words[..] {
            ["open", name, amount] => self.open(name, self::amount(amount)?),
            ["transfer", id, from, to, amount] => {
                let amount = self::amount(amount)?;
                self.count(id);
                self.transfer(from, to, amount)
            }
            _ => Err("expected `open A AMOUNT` or `transfer ID FROM TO AMOUNT`".to_owned()),
        });
        done.map_or_else(Outcome::rejected, Outcome::ok)
    }

    fn query(&self, _: &Context, request: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
        let number = match words(request)?[..] {
            ["balance", name] => self.balance(name)?,
            ["total"] => self.total(),
            ["count", id] => self.applied.get(id).copied().unwrap_or(0),
            ["duplicates"] => self.applied.values().filter(|&&count| count > 1).count() as u64,
            ["transfers"] => self.applied.len() as u64,
            _ => {
                let expected = "`balance A`, `total`, `count ID`, `duplicates` or `transfers`";
                return Err(format!("expected {expected}").into());
            }
        };
        Ok(number.to_string().into())
    }

    fn snapshot(&self, out: &mut SnapshotWriter) -> Result<(), Failure> {
        write_table(out, &self.accounts)?;
        write_table(out, &self.applied)
    }

    fn restore(_: &SnapshotHeader, _: &[u8], from: &mut SnapshotReader) -> Result<Self, Failure> {
        let bank = Self { accounts: read_table(from)?, applied: read_table(from)? };
        if bank.accounts.values().try_fold(0, |sum: u64, &one| sum.checked_add(one)).is_none() {
            return Err(Failure::Corrupt("its balances exceed 64 bits".to_owned()));
        }
        if bank.applied.values().any(|&count| count == 0) {
            return Err(Failure::Corrupt("it counts a transfer that never happened".to_owned()));
        }
        Ok(bank)
    }
}

lockstep_guest::export!(Bank);

impl Bank {
    fn open(&mut self, name: &str, amount: u64) -> Result<String, String> {
        if self.accounts.contains_key(name) {
            return Err(format!("account {name} already exists"));
        }
        if self.total().checked_add(amount).is_none() {
            return Err("the total would exceed 64 bits".to_owned());
        }
        self.accounts.insert(name.to_owned(), amount);
        Ok(amount.to_string())
    }

    fn transfer(&mut self, from: &str, to: &str, amount: u64) -> Result<String, String> {
        let payer = self.balance(from)?;
        let payee = self.balance(to)?;
        if from == to {
            return Err("both accounts are the same".to_owned());
        }
        if amount == 0 {
            return Err("a transfer moves at least 1".to_owned());
        }
        let Some(payer) = payer.checked_sub(amount) else {
            return Err(format!("account {from} holds {payer}, less than {amount}"));
        };
        let payee = payee.checked_add(amount).expect("the total fits 64 bits");
        for (name, balance) in [(from, payer), (to, payee)] {
            *self.accounts.get_mut(name).expect("it had a balance above") = balance;
        }
        Ok(format!("{payer} {payee}"))
    }

    /// Counts one more application of this transfer.
    fn count(&mut self, id: &str) {
        match self.applied.get_mut(id) {
            Some(count) => *count += 1,
            None => {
                self.applied.insert(id.to_owned(), 1);
            }
        }
    }

    fn balance(&self, name: &str) -> Result<u64, String> {
        self.accounts.get(name).copied().ok_or_else(|| format!("no account {name}"))
    }

    /// The sum of all balances, computed anew each time: a running total could be right while the
    /// balances are wrong.
    fn total(&self) -> u64 {
        self.accounts.values().sum()
    }
}

/// The words of a command, separated by single spaces.
fn words(text: &[u8]) -> Result<Vec<&str>, String> {
    let text = str::from_utf8(text).map_err(|_| "expected text in UTF-8".to_owned())?;
    let words: Vec<&str> = text.split(' ').collect();
    if let Some(long) = words.iter().find(|word| word.len() > WORD_BYTES_MAX) {
        return Err(format!("a word has {} bytes, the limit is {WORD_BYTES_MAX}", long.len()));
    }
    if words.iter().any(|word| word.is_empty() || word.chars().any(char::is_control)) {
        return Err("expected words with one space between them".to_owned());
    }
    Ok(words)
}

fn amount(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("expected an amount instead of `{word}`"))
}

fn write_table(out: &mut SnapshotWriter, table: &DetMap<String, u64>) -> Result<(), Failure> {
    out.write_u64(table.len() as u64)?;
    for (name, number) in table {
        out.write_block(name.as_bytes())?;
        out.write_u64(*number)?;
    }
    Ok(())
}

fn read_table(from: &mut SnapshotReader) -> Result<DetMap<String, u64>, Failure> {
    let mut table = DetMap::new();
    for _ in 0..from.read_u64()? {
        let name = String::from_utf8(from.read_block(WORD_BYTES_MAX)?)
            .map_err(|_| Failure::Corrupt("it has a name that is not UTF-8".to_owned()))?;
        let number = from.read_u64()?;
        // Snapshots have the names in order; this also finds repeated names.
        if table.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err(Failure::Corrupt("its names are out of order".to_owned()));
        }
        table.insert(name, number);
    }
    Ok(table)
}

#[cfg(test)]
mod tests;
