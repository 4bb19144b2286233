//! What the operating system tells a run: its randomness and its time, both the world's own.
//!
//! Libraries draw the keys of their hash maps, the order in which they poll, the ids that they make up, from the
//! operating system, and read its clock. No seed can be handed in to all of them. So this program, and no other, brings
//! its own `getrandom` and `clock_gettime`, which the linker takes in place of libc's.

// The only unsafe code of the simulation. It stands in for two functions of libc, and so has their signatures.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

/// A run has begun: time and chance are the world's.
static SIMULATED: AtomicBool = AtomicBool::new(false);
static CHANCE: AtomicU64 = AtomicU64::new(0);
static NOW: AtomicU64 = AtomicU64::new(0);
/// How many milliseconds the wall clock of whoever runs now is off.
static WALL_MS: AtomicI64 = AtomicI64::new(0);

/// Some moment of 2027, and some time after the start of the machine.
const EPOCH_S: u64 = 1_800_000_000;
const UPTIME_S: u64 = 1_000;
const NANOS: u64 = 1_000_000_000;
/// In which proc(5) counts; Linux shows programs this, whatever it does inside.
const TICKS_PER_S: u64 = 100;

/// From now on this process lives in the world of that seed.
pub fn leave(seed: u64) {
    CHANCE.store(seed, Relaxed);
    SIMULATED.store(true, Relaxed);
}

/// The time of the world.
pub fn set_time(now: u64) {
    NOW.store(now, Relaxed);
}

/// How far the wall clock is off for whoever runs from now on.
pub fn set_wall(off_ms: i64) {
    WALL_MS.store(off_ms, Relaxed);
}

/// SplitMix64.
fn next() -> u64 {
    let state = CHANCE.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// # Safety
/// As of getrandom(2): `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    if !SIMULATED.load(Relaxed) {
        // SAFETY: the caller's arguments are handed on to the system call as they are.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return got as isize;
    }
    // SAFETY: the caller says that so many bytes are there to be written; they need not be initialised to be filled.
    let bytes = unsafe {
        std::ptr::write_bytes(buffer, 0, length);
        std::slice::from_raw_parts_mut(buffer, length)
    };
    for part in bytes.chunks_mut(8) {
        let random = next().to_le_bytes();
        part.copy_from_slice(&random[..part.len()]);
    }
    length as isize
}

/// # Safety
/// As of clock_gettime(2): `time` points to a place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    if !SIMULATED.load(Relaxed) {
        // SAFETY: the caller's arguments are handed on to the system call as they are.
        let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        return result as libc::c_int;
    }
    let (base, off_ms) = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => (EPOCH_S, WALL_MS.load(Relaxed)),
        _ => (UPTIME_S, 0),
    };
    let now = (base * NANOS + NOW.load(Relaxed)).saturating_add_signed(off_ms * 1_000_000);
    let answer = libc::timespec {
        tv_sec: (now / NANOS) as libc::time_t,
        tv_nsec: (now % NANOS) as libc::c_long,
    };
    // SAFETY: the caller says that there is a place for it.
    unsafe { time.write(answer) };
    0
}

/// How much of a processor a child has used until now, all its threads together.
///
/// # Errors
/// If it was waited for already.
pub fn processor_time(process: u32) -> std::io::Result<std::time::Duration> {
    // See proc(5): the name, in parentheses, may hold anything; utime and stime are the 12th and 13th behind it.
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
    let times = behind.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    Ok(std::time::Duration::from_millis(ticks * 1000 / TICKS_PER_S))
}

/// How long this process has really run; its own clock tells the world's.
pub fn real_time() -> std::time::Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a place for the answer, and the clock exists on every Linux.
    unsafe {
        libc::syscall(
            libc::SYS_clock_gettime,
            libc::CLOCK_MONOTONIC,
            &raw mut time,
        )
    };
    std::time::Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}
