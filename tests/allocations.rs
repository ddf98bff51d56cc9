//! What most requests are made of (narinfos that are cached, and paths that are not there) costs no memory
//! from the allocator.

#[path = "../benches/support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

use harmonia::http::Status;
use harmonia::server::resolve::Step;
use harmonia::server::route::Route;
use harmonia::store::view::{Find, Look};
use support::{ABSENT, Warm, hash, parsed};

thread_local! {
    /// How often this thread has allocated, grown or moved memory.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted a thread, so that tests on other threads do not show.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // A thread that is ending has no counter any more, and nobody asks for it.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain number of its own thread,
// needs no memory from here, and cannot panic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the same rules.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the same rules.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the same rules, and all memory is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the same rules, and all memory is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often a hundred runs of `work` allocate, after one that may fill buffers.
fn allocations<T>(mut work: impl FnMut() -> T) -> u64 {
    black_box(work());
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| drop(black_box(work())));
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| Box::new(1)), 100);
    assert_eq!(allocations(|| vec![0_u8; 4096]), 100);
}

#[test]
fn reading_a_request_allocates_nothing() {
    let targets = [
        format!("/{ABSENT}.narinfo"),
        format!("/{ABSENT}.ls"),
        format!("/nar/1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s.nar?hash={ABSENT}"),
        "/nix-cache-info".to_owned(),
        "/metrics".to_owned(),
        "/favicon.ico".to_owned(),
    ];
    for target in targets {
        let request = Warm::request(&target);
        assert_eq!(allocations(|| parsed(black_box(&request)).keep_alive), 0, "{target}: parsing");
        let request = parsed(&request);
        assert_eq!(allocations(|| Route::of(black_box(&request.target))), 0, "{target}: routing");
    }
}

#[test]
fn looking_a_path_up_allocates_nothing() {
    let mut warm = Warm::new();
    let (present, absent) = (hash(&warm.present), hash(ABSENT));
    let view = &mut warm.view;
    assert!(matches!(view.find(&present), Find::Served(_)));
    assert!(matches!(view.find(&absent), Find::Absent));
    assert_eq!(allocations(|| view.find(black_box(&present))), 0, "a hit");
    assert_eq!(allocations(|| view.find(black_box(&absent))), 0, "a miss");
    assert_eq!(view.look(), Look::Fresh);
    // Once a turn, whatever the number of requests: the statement goes back to the connection's cache under a
    // name of its own. SQLite itself takes its memory elsewhere.
    assert!(allocations(|| assert_eq!(view.look(), Look::Fresh)) <= 100, "a look");
}

#[test]
fn answering_from_memory_allocates_nothing() {
    let mut warm = Warm::new();
    let hit = format!("/{}.narinfo", warm.present);
    let targets = [
        (hit, Status::Ok),
        (format!("/{ABSENT}.narinfo"), Status::NotFound),
        ("/short.narinfo".to_owned(), Status::NotFound),
        (format!("/nar/{ABSENT}.nar"), Status::NotFound),
        ("/nix-cache-info".to_owned(), Status::Ok),
    ];
    let now = Instant::now();
    for (target, expected) in targets {
        let request = Warm::request(&target);
        let answer = allocations(|| match warm.answer(&request, now) {
            Step::Reply(reply) => assert_eq!(reply.status, expected, "{target}"),
            Step::Ask(question) => panic!("{target}: {question:?}"),
        });
        assert_eq!(answer, 0, "{target}");
    }
}
