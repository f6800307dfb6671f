//! The one wasmtime engine of the process, and every switch that keeps it deterministic.
//!
//! - Two replicas that run the same calls on instances with the same past get the same answers, the
//!   same traps and the same fuel, on every machine this compiles for.
//! - All that a guest could observe is decided here or in the group's replicated profile, never in
//!   a node's file. Constants marked *profile* decide outcomes: changing one is a change of
//!   [`FUEL_TABLE`] or comes with a new [`ENGINE_MAJOR`], and a replica refuses a group whose
//!   profile names another.
//! - Fuel is the only bound on running time. There are no epochs: they depend on the clock.
//!
//! Compiled code is not kept between processes; modules share the engine within one.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use lockstep_core::entry::Profile;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, RegallocAlgorithm, Strategy,
    WasmBacktraceDetails,
};

/// Major version of wasmtime. Costs of operators, stack frames and bugs are per version.
pub const ENGINE_MAJOR: u32 = 48;

/// Versions whose groups this program runs as well: they count by the same table, give the same
/// values, and were run side by side with this one ([`FUEL_TABLE`], decision 0040).
const ENGINES_RUN: &[u32] = &[ENGINE_MAJOR];

/// Which table of costs an entry's fuel is counted by: 1 is wasmtime's default operator costs
/// together with every constant of this file that was marked *profile* then; 2 adds the prices of
/// the host's functions.
pub const FUEL_TABLE: u32 = 2;

/// *Profile.* Fuel of one call of a function of the host, whatever comes of it: a message may be
/// dropped on one node and passed on by another. Some microseconds, as the call itself.
pub const HOST_CALL_FUEL: u64 = 50_000;

/// *Profile.* Fuel of each byte that such a call hands over in either direction, also of what the
/// host then cuts off: what an instruction costs that moves a byte.
pub const HOST_BYTE_FUEL: u64 = 1;

/// *Profile.* Bytes of native stack a guest may use. Frame sizes depend on the compiler and the
/// processor, so where exactly it ends is not the same everywhere: it is generous, so that fuel or
/// the guest's own stack in linear memory ends a runaway recursion first. Threads that enter a
/// guest need twice as much.
pub const STACK_BYTES_MAX: usize = 1 << 20;

/// Stack of a thread that enters a guest: the guest's and as much again for the host below it.
pub(crate) const THREAD_STACK_BYTES: usize = 2 * STACK_BYTES_MAX;

/// *Profile.* Fuel of `init`, as a multiple of the profile's fuel for an entry.
pub const INIT_ENTRIES: u64 = 20;

/// *Profile.* Fuel of `snapshot` and of `restore`, as a multiple of the profile's fuel for an
/// entry. 5e9 x 400 = 2e12; restoring 512 MiB of 100-byte values takes `kv` some 8e10.
pub const SNAPSHOT_ENTRIES: u64 = 400;

/// Fuel of a query. Not part of the profile: a query's answer is not replicated. A good tenth of a
/// second to a third, for which the apply lane stands still.
pub const QUERY_FUEL: u64 = 2_000_000_000;

/// Fuel of `describe` on a throw-away instance, its instantiation included.
pub const DESCRIBE_FUEL: u64 = 1_000_000_000;

/// *Profile.* Elements of all tables of a guest together; an element is a pointer of host memory.
pub const TABLE_ELEMENTS_MAX: usize = 1 << 20;

/// *Profile.* Memories of a guest; QuickJS builds have three.
pub const MEMORIES_MAX: usize = 16;

/// *Profile.* Core instances and tables of a guest, each.
pub const INSTANCES_MAX: usize = 256;

/// Frames kept of a trap's backtrace; a panic takes the innermost seven for itself.
pub(crate) const BACKTRACE_FRAMES_MAX: usize = 24;

/// Why there is no engine on this machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the WebAssembly engine does not start on this machine: {0}")]
pub struct EngineError(String);

/// Why a group's profile cannot be honoured by this binary.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the group was founded on wasmtime {} with fuel table {}, and this program runs groups of \
     wasmtime {} with fuel table {FUEL_TABLE}: start a release of lockstep that runs the former on \
     this node; nothing was applied",
    .profile.engine_major, .profile.fuel_table, list(.engines)
)]
pub struct ProfileMismatch {
    profile: Profile,
    engines: &'static [u32],
}

fn list(engines: &[u32]) -> String {
    engines.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// The engine that all modules of the process share.
pub fn shared() -> Result<&'static Engine, EngineError> {
    static ENGINE: OnceLock<Result<Engine, EngineError>> = OnceLock::new();
    ENGINE
        .get_or_init(|| Engine::new(&config()).map_err(|error| EngineError(format!("{error:#}"))))
        .as_ref()
        .map_err(Clone::clone)
}

/// Whether this program counts and computes as the profile says.
pub fn check_profile(profile: &Profile) -> Result<(), ProfileMismatch> {
    check_among(ENGINES_RUN, profile)
}

fn check_among(engines: &'static [u32], profile: &Profile) -> Result<(), ProfileMismatch> {
    match engines.contains(&profile.engine_major) && profile.fuel_table == FUEL_TABLE {
        true => Ok(()),
        false => Err(ProfileMismatch { profile: *profile, engines }),
    }
}

fn config() -> Config {
    let mut config = Config::new();
    values(&mut config);
    proposals(&mut config);
    limits(&mut config);
    code(&mut config);
    config
}

/// What an instruction yields.
fn values(config: &mut Config) {
    // The bits of a NaN differ between processors; every NaN becomes the same one, in f32, f64 and
    // v128 alike. Integers are untouched.
    config.cranelift_nan_canonicalization(true);
    // Relaxed SIMD *means* "whatever this processor does". On by default, hence off by hand; plain
    // SIMD stays, it is exact.
    config.wasm_relaxed_simd(false);
    // Were relaxed SIMD ever switched on, its deterministic form.
    config.relaxed_simd_deterministic(true);
}

/// Which WebAssembly is accepted. Less is better: each proposal is one more thing that must cost
/// the same fuel and end in the same trap everywhere, and no toolchain we know needs one of these.
fn proposals(config: &mut Config) {
    // Threads race. The crate is built without them, so there is no switch; this one is the rest.
    config.shared_memory(false);
    // When a collector runs and what it finds is state that nobody sees. The crate is built
    // without any, and modules that need one are refused when they are validated.
    config.gc_support(false);
    config.wasm_gc(false);
    // Memories over 4 GiB have no use under a limit of memory, and need bounds checks.
    config.wasm_memory64(false);
    // Growth by single bytes would go past the limiter's page arithmetic.
    config.wasm_custom_page_sizes(false);
    config.wasm_stack_switching(false);
    config.wasm_wide_arithmetic(false);
    config.wasm_tail_call(false);
    // Several memories stay allowed: the adapters that wasmtime itself makes within a component
    // need them, without which it panics on components that have any (48.0.8).
    config.wasm_multi_memory(true);
    // No async components: an event loop is an order of events. Built without; this saves the
    // bookkeeping as well, half a microsecond a call.
    config.concurrency_support(false);
}

/// What ends a guest that would not end.
fn limits(config: &mut Config) {
    // Counted by operator, independent of machine and of optimisation. The table of costs is left
    // at wasmtime's own, see FUEL_TABLE.
    config.consume_fuel(true);
    // The clock ends nothing.
    config.epoch_interruption(false);
    config.max_wasm_stack(STACK_BYTES_MAX);
    // A long-lived store per guest, few of them; pools would add limits of their own, and have no
    // place for memories of ours.
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    // Memories that a second instance may look into. wasmtime's images of data segments do not go
    // together with them (48.0.8 panics): segments are copied.
    config.with_host_memory(Arc::new(super::memory::Creator));
    config.memory_init_cow(false);
}

/// How code is made. Results do not depend on it, but the size of stack frames does, and so where a
/// stack ends; pinned so that a default or an environment variable cannot move it.
fn code(config: &mut Config) {
    config.strategy(Strategy::Cranelift);
    config.cranelift_opt_level(OptLevel::Speed);
    config.cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking);
    // A trap names the functions it happened in; their lines would be looked up, at a cost, by an
    // environment variable, so they are not.
    config.wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
}

const _: () = assert!(THREAD_STACK_BYTES > STACK_BYTES_MAX + (512 << 10));

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration is one that wasmtime accepts, and the default profile is ours.
    #[test]
    fn the_engine_starts_and_honours_the_default_profile() {
        shared().expect("the engine starts on a machine that runs tests");
        assert_eq!(check_profile(&Profile::default()), Ok(()));
    }

    #[test]
    fn another_engine_or_fuel_table_is_refused() {
        let other_engine = Profile { engine_major: ENGINE_MAJOR + 1, ..Profile::default() };
        let other_table = Profile { fuel_table: FUEL_TABLE + 1, ..Profile::default() };
        for profile in [other_engine, other_table] {
            let refused = check_profile(&profile).expect_err("the profile is not ours");
            assert!(refused.to_string().contains("start a release of lockstep"), "{refused}");
        }
    }

    /// A group goes on under a later engine that is known to do the same, and only under that.
    #[test]
    fn an_engine_that_is_listed_runs_the_groups_of_another() {
        let of = |engine_major| Profile { engine_major, ..Profile::default() };
        for engine in [48, 50] {
            assert_eq!(check_among(&[48, 50], &of(engine)), Ok(()));
        }
        let refused = check_among(&[48, 50], &of(49)).expect_err("it is not listed");
        let says = "founded on wasmtime 49 with fuel table 2, and this program runs groups of \
            wasmtime 48, 50 with fuel table 2";
        assert!(refused.to_string().contains(says), "{refused}");
    }

    /// What an update of the engine must not change unnoticed: if this fails, it counts by another
    /// table, and groups of the one before cannot be run ([`ENGINES_RUN`], [`FUEL_TABLE`]).
    #[test]
    fn the_fuel_of_a_known_program_is_golden() {
        let program = wat::parse_str(
            "(module (memory 1) (table 1 funcref) (type $f (func (param i64) (result i64)))
               (elem (i32.const 0) $square)
               (func $square (param i64) (result i64) (i64.mul (local.get 0) (local.get 0)))
               (func (export \"run\") (param $n i32) (result i64) (local $sum i64)
                 (loop $again
                   (local.set $sum (i64.add (local.get $sum)
                     (call_indirect (type $f) (i64.extend_i32_u (local.get $n)) (i32.const 0))))
                   (i64.store (i32.const 8) (local.get $sum))
                   (memory.copy (i32.const 64) (i32.const 0) (i32.const 48))
                   (memory.fill (i32.const 128) (i32.const 7) (i32.const 32))
                   (f64.store (i32.const 16) (f64.sqrt (f64.load (i32.const 8))))
                   (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
                 (drop (memory.grow (i32.const 1)))
                 (local.get $sum)))",
        );
        let engine = shared().expect("the engine starts");
        let program = wasmtime::Module::new(engine, program.expect("it is a module"));
        let mut store = wasmtime::Store::new(engine, ());
        store.set_fuel(1_000_000).expect("fuel is counted");
        let program = program.expect("it compiles");
        let instance = wasmtime::Instance::new(&mut store, &program, &[]).expect("no imports");
        let run = instance.get_typed_func::<i32, i64>(&mut store, "run").expect("it is there");
        assert_eq!(run.call(&mut store, 100).expect("it ends"), 338_350);
        let used = 1_000_000 - store.get_fuel().expect("fuel is counted");
        assert_eq!((ENGINE_MAJOR, FUEL_TABLE, used), (48, 2, 11_204));
    }
}
