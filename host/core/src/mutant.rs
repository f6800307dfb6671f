//! Bugs planted on purpose, so that checkers can be checked.
//!
//! Each has a name and stands in the code as `if planted("name")`. Without the feature `mutants`
//! that is a constant `false`, and nothing of it is left in the program. With it, one of them can be
//! chosen once a process; who chooses reads `LOCKSTEP_MUTANT`.

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Whether the bug of this name is in the program now.
#[cfg(feature = "mutants")]
pub fn planted(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen == name)
}

/// Whether the bug of this name is in the program now: never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// Chooses the bug of this process; only the first choice counts.
#[cfg(feature = "mutants")]
pub fn choose(name: &str) {
    let _ = CHOSEN.set(name.to_owned());
}
