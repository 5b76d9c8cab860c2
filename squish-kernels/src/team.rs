//! Short data-parallel regions: a function runs on every item of a slice, shared out to a team of threads item by item.
//!
//! Decoding a token is about a hundred regions of 50 to 500 µs. Handing one to a general pool from outside costs a queue
//! and a wake each time; the workers of a team serve one region at a time and spin for the next, so that a region opens
//! and ends with a few cache lines exchanged.
//!
//! ```text
//! caller:  enter the slot; open the gate; claim and run items; close the gate; wait until nobody is inside; free the slot
//! worker:  loop { wait for the gate; join; claim and run items; close the gate; leave }
//! ```
//!
//! The `slot` points to the region, which lives on its caller's stack, or is null. The `gate` is one word: how many
//! workers are invited, how many are inside, and two flags. The protocol:
//!
//! 1. *Enter.* The caller exchanges null in the slot for its region. Where it finds another region (a concurrent
//!    caller's, or the one whose item makes this call) it runs its items itself, and none of the following happens.
//! 2. *Open.* It stores in the gate that workers 1 to `n` are invited, `n` less than the number of items, and unparks
//!    those of them that say they are parked.
//! 3. *Join.* An invited worker adds itself to those inside by a compare-exchange of the whole gate. That succeeds only
//!    while the gate is open; then the worker reads the slot.
//! 4. *Work.* Members claim items from a counter until none is left. A panic leaves none.
//! 5. *Close.* A member that finds no item left sets the number of invited workers to zero. The caller always gets here
//!    by itself, so that a worker which wakes late finds the gate closed and is not waited for.
//! 6. *Leave.* A worker takes itself off those inside after its last touch of the region. The caller waits for zero.
//! 7. *Free.* The caller sets the slot to null, and resumes a panic if there was one.
//!
//! Workers touch a region only between joining and leaving, and it outlives both: nobody joins after 5, and the caller
//! does not pass 6 while anybody is inside. A worker that is delayed between reading the gate and joining either fails to
//! join or joins the region that is open by then, so that regions need no number.
//!
//! Chance decides who runs an item and when, not that it is run, once: where what the function does to an item depends on
//! that item alone, no result depends on the number of threads.

use std::{
    any::Any,
    fmt,
    hint::spin_loop,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicPtr, AtomicU32, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
        },
    },
    thread::{self, JoinHandle},
};

/// Threads that run short parallel regions together with the thread that asks for them.
///
/// Workers that wait for a region spin for a fraction of a millisecond and then park, so that an idle team costs nothing.
/// A region costs some hundred nanoseconds while the workers spin. One that has parked costs the caller some microseconds
/// to wake, and comes some ten microseconds later. Dropping a team ends its workers.
///
/// # Examples
///
/// ```
/// use squish_kernels::Team;
///
/// let team = Team::new(2)?;
/// let mut rows = [[1.0, 3.0], [2.0, 2.0], [4.0, 1.0]];
/// team.for_each(&mut rows, |row| {
///     let sum: f32 = row.iter().sum();
///     row.iter_mut().for_each(|x| *x /= sum);
/// });
/// assert_eq!(rows, [[0.25, 0.75], [0.5, 0.5], [0.8, 0.2]]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Team {
    shared: Arc<Shared>,
    /// Worker `idx` at `idx - 1`.
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `n_threads` members: the caller of each region, and `n_threads - 1` threads spawned here.
    ///
    /// 0 and 1 spawn none. Threads beyond the number of free cores only cost time.
    ///
    /// # Errors
    ///
    /// What spawning a thread reports, with the threads spawned so far ended;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for more than 16,384 threads.
    pub fn new(n_threads: usize) -> io::Result<Self> {
        Self::with_hook(n_threads, |_| {})
    }

    /// As [`new`](Self::new), with `on_start(idx)` run first on each worker: a place to pin threads or to set priorities.
    ///
    /// Threads that are not pinned may be woken on the core of the caller, where they come a time slice late.
    /// Workers count from 1; member 0 is the caller. Regions do not wait for a worker whose hook has not returned, and do
    /// without one whose hook panics.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_hook(
        n_threads: usize,
        on_start: impl Fn(usize) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let n_workers = n_threads.saturating_sub(1);
        if n_workers > INSIDE as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many threads for a team"));
        }
        let on_start = Arc::new(on_start);
        let parked = (0..n_workers).map(|_| AtomicBool::new(false)).collect();
        let shared = Arc::new(Shared { parked, ..Shared::default() });
        // Where a spawn fails, dropping the team ends the workers before it.
        let mut team = Self { shared, workers: Vec::with_capacity(n_workers) };
        for idx in 1..=n_workers {
            let (shared, on_start) = (Arc::clone(&team.shared), Arc::clone(&on_start));
            let builder = thread::Builder::new().name(format!("squish-{idx}"));
            team.workers.push(builder.spawn(move || {
                on_start(idx);
                shared.serve(idx);
            })?);
        }
        Ok(team)
    }

    /// The team of this process, of as many members as it may run threads in parallel.
    ///
    /// Made on first use and never ended. Where threads cannot be spawned it is the caller alone.
    #[must_use]
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Team> = OnceLock::new();
        GLOBAL.get_or_init(|| {
            let n_threads = thread::available_parallelism().map_or(1, usize::from);
            Self::new(n_threads)
                .unwrap_or_else(|_| Self { shared: Arc::default(), workers: Vec::new() })
        })
    }

    /// Number of members, the caller of a region included.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body` once on every item of `items`, and returns when all are done.
    ///
    /// Members claim items one at a time, in order; some microseconds of work make an item worth claiming. Where what
    /// `body` does to an item depends on that item alone, the result is the same for any number of threads. A single
    /// item, all items of a team of one, and those of a call while another region of this team runs (another thread's, or
    /// the one whose `body` makes this call) are run on the calling thread. Allocates nothing.
    ///
    /// # Panics
    ///
    /// If `body` does, with its payload (of several panics, one's), once all members have stopped. Items not claimed by
    /// then are not run. The team stays usable.
    pub fn for_each<T: Send>(&self, items: &mut [T], body: impl Fn(&mut T) + Sync) {
        let n_invited = self.workers.len().min(items.len().saturating_sub(1));
        if n_invited == 0 {
            return items.iter_mut().for_each(body);
        }
        // Atomic only because that is a pointer which other threads may hold.
        let (n_items, start) = (items.len(), AtomicPtr::new(items.as_mut_ptr()));
        let run = |item_idx| {
            // SAFETY: a region calls this at most once for each index below `n_items`, the length of `items`, and not
            // after `Shared::run` below has returned, until which `items` is borrowed: the reference is valid, the only
            // one to its item, and may be on any thread, as `T: Send`.
            body(unsafe { &mut *start.load(Relaxed).wrapping_add(item_idx) });
        };
        let region =
            Region { run: &run, n_items, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        self.shared.run(&region, n_invited, &self.workers);
        if let Some(payload) = lock(&region.panic).take() {
            resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // No region is open, as each borrows the team.
        self.shared.gate.fetch_or(ENDED, Relaxed);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            // An error is a panic of the hook, which has been reported where it happened.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("n_threads", &self.n_threads()).finish_non_exhaustive()
    }
}

/// A call of `for_each`, on the stack of its caller.
struct Region<'a> {
    /// Runs an item. Called by `work` only, at most once for each index: the `unsafe` code of `for_each` relies on it.
    run: &'a (dyn Fn(usize) + Sync),
    n_items: usize,
    /// The item to be claimed next, `n_items` when none is left.
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Region<'_> {
    /// Claims and runs items until none is left. Does not unwind.
    fn work(&self) {
        // Unwind safe, as nobody sees what a panic left half done before the caller resumes it.
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(item_idx) = self.claim() {
                (self.run)(item_idx);
            }
        }));
        if let Err(payload) = result {
            self.next.store(self.n_items, Relaxed);
            let mut first = lock(&self.panic);
            if first.is_none() {
                *first = Some(payload);
            } else {
                // Not dropped, which could panic again, in a member that has yet to leave.
                let _ = Box::into_raw(payload);
            }
        }
    }

    /// An index that nobody else gets.
    ///
    /// The counter stops at `n_items`, so that it does not come round to zero however many items there are. It orders
    /// nothing else: what an item holds comes with the opening of the region and goes with the leaving of the member.
    fn claim(&self) -> Option<usize> {
        let after = |item_idx| (item_idx < self.n_items).then_some(item_idx + 1);
        self.next.fetch_update(Relaxed, Relaxed, after).ok()
    }
}

/// The gate: workers inside, in the low bits.
const INSIDE: u32 = (1 << 14) - 1;
/// The caller is blocked until none is inside.
const BLOCKED: u32 = 1 << 14;
/// The team is being dropped.
const ENDED: u32 = 1 << 15;
/// One invited worker; the number of them is above the flags.
const INVITED: u32 = 1 << 16;

/// How often a member looks before it blocks: for half a millisecond or so on current x86, more than the gaps between the
/// regions of a token. Bounded, as pools that spin on collapse where threads outnumber cores: the thread they wait for
/// has no core.
const SPINS: u32 = 20_000;

/// The wait after the look of this number.
///
/// Now and then it gives the core to a thread that is ready to run. Where other programs use the cores, that makes
/// regions two to three times as fast; where the cores are free, no difference was measured.
fn pause(look: u32) {
    if look % 64 == 63 { thread::yield_now() } else { spin_loop() }
}

/// What members share, on lines of its own: spinning workers read the gate all the time, and lines are fetched in pairs.
/// The slot lies beside the gate, as the two change together.
#[derive(Default)]
#[repr(align(128))]
struct Shared {
    gate: AtomicU32,
    slot: AtomicPtr<Region<'static>>,
    /// Whether worker `idx` parks or is about to, at `idx - 1`. Only the worker writes it.
    parked: Box<[AtomicBool]>,
    blocking: Mutex<()>,
    none_inside: Condvar,
}

impl Shared {
    /// Runs `region` on the caller and up to `n_invited` workers, or on the caller alone where another region is open.
    fn run(&self, region: &Region<'_>, n_invited: usize, workers: &[JoinHandle<()>]) {
        let ptr = ptr::from_ref(region).cast::<Region<'static>>().cast_mut();
        // Acquire, of the release below: this region's writes of the gate come after those of the region before.
        if self.slot.compare_exchange(ptr::null_mut(), ptr, Acquire, Relaxed).is_err() {
            return region.work();
        }
        // None of these unwinds: the caller cannot get away while a worker is inside.
        self.open(n_invited, workers);
        region.work();
        self.close();
        self.wait_until_none_inside();
        self.slot.store(ptr::null_mut(), Release);
    }

    fn open(&self, n_invited: usize, workers: &[JoinHandle<()>]) {
        // A plain store, as nobody else writes a closed gate with nobody inside. It releases the slot and the region to
        // workers that join, also behind others: all other writes are read-modify-writes, which continue a release. It is
        // sequentially consistent for the sake of parking, see `join`.
        self.gate.store(n_invited as u32 * INVITED, SeqCst);
        for (worker, parked) in workers.iter().zip(&self.parked).take(n_invited) {
            if parked.load(SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// Lets nobody join anymore. Relaxed, as it publishes nothing: it only has its place in the order of the gate's
    /// values.
    fn close(&self) {
        self.gate.fetch_and(INVITED - 1, Relaxed);
    }

    fn wait_until_none_inside(&self) {
        // A load that finds nobody inside acquires what each worker released by leaving, as what others wrote to the gate
        // since continues the release.
        for look in 0..SPINS {
            if self.gate.load(Acquire) & INSIDE == 0 {
                return;
            }
            pause(look);
        }
        let mut guard = lock(&self.blocking);
        let mut gate = self.gate.fetch_or(BLOCKED, Acquire);
        while gate & INSIDE != 0 {
            guard = self.none_inside.wait(guard).unwrap_or_else(PoisonError::into_inner);
            gate = self.gate.load(Acquire);
        }
    }

    /// The life of worker `idx`.
    fn serve(&self, idx: usize) {
        while self.join(idx) {
            // SAFETY: the worker is inside, so that the caller that opened the gate stays in `run`, with the region that
            // it put in the slot borrowed, until `leave`. `Region` is `Sync`, and `work` keeps nothing of it, whatever
            // its lifetime is called here. The load comes after the store of this pointer by the acquire of `join`, and
            // before that of the next by the release of `leave`.
            unsafe { &*self.slot.load(Relaxed) }.work();
            self.close();
            self.leave();
        }
    }

    /// Waits until worker `idx` is invited and goes inside, or, for `false`, until the team has ended.
    fn join(&self, idx: usize) -> bool {
        let parked = &self.parked[idx - 1];
        let inside = |gate| ((gate / INVITED) as usize >= idx).then_some(gate + 1);
        // Acquire, of the opening. The load before it is sequentially consistent for the sake of parking.
        let try_join = || match self.gate.fetch_update(Acquire, SeqCst, inside) {
            Ok(_) => Some(true),
            Err(gate) => (gate & ENDED != 0).then_some(false),
        };
        loop {
            for look in 0..SPINS {
                if let Some(joined) = try_join() {
                    return joined;
                }
                pause(look);
            }
            // A caller writes the gate and then reads the flag, the worker the other way round. Of two reads in the one
            // order of all sequentially consistent accesses, the later one sees the other's write: the worker finds the
            // gate opened, or the caller unparks it. An unpark too many makes it look again.
            parked.store(true, SeqCst);
            let answer = try_join();
            if answer.is_none() {
                thread::park();
            }
            parked.store(false, Relaxed);
            if let Some(joined) = answer {
                return joined;
            }
        }
    }

    fn leave(&self) {
        let before = self.gate.fetch_sub(1, Release);
        if before & (INSIDE | BLOCKED) == BLOCKED | 1 {
            // The caller holds the lock from before it sets the flag until it blocks; a signal meanwhile would be lost.
            drop(lock(&self.blocking));
            self.none_inside.notify_one();
        }
    }
}

/// The lock, poisoned or not: nothing panics while one of this module is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::HashSet,
        sync::{Barrier, atomic::AtomicU64, mpsc},
        time::Duration,
    };

    use super::*;

    /// Work of a length that depends on `n`, for items of uneven cost.
    fn toil(n: usize) {
        (0..n).for_each(|_| spin_loop());
    }

    #[test]
    fn regions_may_be_shared_as_the_raw_pointer_to_them_does_not_tell() {
        fn assert_sync<T: Sync>() {}
        assert_sync::<Region<'static>>();
    }

    /// A panic that no hook reports.
    fn fail(payload: usize) -> ! {
        resume_unwind(Box::new(payload))
    }

    fn payload_of(f: impl FnOnce()) -> usize {
        let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("the panic arrives");
        *payload.downcast().expect("the payload is that of `fail`")
    }

    thread_local! {
        static MEMBER: Cell<usize> = const { Cell::new(0) };
    }

    /// A team whose workers know their index.
    fn numbered(n_threads: usize) -> Team {
        Team::with_hook(n_threads, |idx| MEMBER.set(idx)).unwrap()
    }

    #[test]
    fn every_item_runs_exactly_once() {
        for n_threads in 0..=4 {
            let team = Team::new(n_threads).unwrap();
            assert_eq!(team.n_threads(), n_threads.max(1));
            for n_items in (0..40).chain([63, 64, 65, 1000]) {
                let mut items: Vec<(usize, u32)> = (0..n_items).map(|idx| (idx, 0)).collect();
                team.for_each(&mut items, |(idx, n_runs)| {
                    toil(*idx * 37 % 101);
                    *n_runs += 1;
                });
                assert!(items.iter().all(|item| item.1 == 1), "{n_threads} threads: {items:?}");
            }
        }
    }

    #[test]
    fn what_items_and_captures_hold_afterwards_is_what_the_members_wrote() {
        let team = Team::new(3).unwrap();
        let (mut rows, sum) = (vec![vec![1_u64; 100]; 50], AtomicU64::new(0));
        for round in 1..=200 {
            team.for_each(&mut rows, |row| {
                for x in &mut *row {
                    *x += 1;
                }
                sum.fetch_add(row[99], Relaxed);
            });
            assert!(rows.iter().flatten().all(|&x| x == round + 1));
        }
        assert_eq!(sum.into_inner(), 50 * (2..=201).sum::<u64>());
    }

    #[test]
    fn items_without_size_run_once_each() {
        let (team, n_runs) = (Team::new(2).unwrap(), AtomicUsize::new(0));
        team.for_each(&mut [(); 1000], |()| {
            n_runs.fetch_add(1, Relaxed);
        });
        assert_eq!(n_runs.into_inner(), 1000);
    }

    #[test]
    fn a_region_within_a_region_runs_on_the_thread_that_asks() {
        let team = numbered(3);
        let mut items = [[0_u32; 9]; 20];
        for _ in 0..100 {
            team.for_each(&mut items, |inner| {
                let member = MEMBER.get();
                team.for_each(inner, |x| {
                    assert_eq!(MEMBER.get(), member);
                    *x += 1;
                });
            });
        }
        assert_eq!(items, [[100; 9]; 20]);
    }

    #[test]
    fn callers_at_the_same_time_all_finish() {
        let team = Team::new(3).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut items = [0_u32; 7];
                    for _ in 0..2000 {
                        team.for_each(&mut items, |x| *x += 1);
                    }
                    assert_eq!(items, [2000; 7]);
                });
            }
        });
    }

    #[test]
    fn a_panic_of_any_member_reaches_the_caller_and_the_team_stays_usable() {
        let team = numbered(2);
        for round in 0..100 {
            let (failing, both_run) = (round % 2, Barrier::new(2));
            let mut items = [0; 2];
            // Two items that wait for each other are run by two members.
            let payload = payload_of(|| {
                team.for_each(&mut items, |_| {
                    both_run.wait();
                    if MEMBER.get() == failing {
                        fail(round);
                    }
                });
            });
            assert_eq!(payload, round);
            team.for_each(&mut items, |x| *x += 1);
            assert_eq!(items, [1; 2]);
        }
    }

    #[test]
    fn of_two_panics_one_arrives() {
        let (team, both_run) = (Team::new(2).unwrap(), Barrier::new(2));
        let payload = payload_of(|| {
            team.for_each(&mut [3, 4], |&mut item| {
                both_run.wait();
                fail(item);
            });
        });
        assert!(payload == 3 || payload == 4);
    }

    #[test]
    fn after_a_panic_members_claim_no_more() {
        for n_threads in [1, 2, 4] {
            let (team, n_runs) = (Team::new(n_threads).unwrap(), AtomicUsize::new(0));
            payload_of(|| {
                team.for_each(&mut [(); 100_000], |()| {
                    if n_runs.fetch_add(1, Relaxed) == 10 {
                        fail(0);
                    }
                    toil(1000);
                });
            });
            // Others go on until the panic has unwound; all the items are seconds of work.
            assert!(n_runs.into_inner() < 100_000, "{n_threads} threads");
        }
    }

    #[test]
    fn a_region_does_not_wait_for_workers_that_never_came() {
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        // The worker is held in its hook until the sender is dropped.
        let team = Team::with_hook(2, move |_| {
            let _ = lock(&held).recv();
        })
        .unwrap();
        let mut items = [0; 10];
        (0..100).for_each(|_| team.for_each(&mut items, |x| *x += 1));
        assert_eq!(items, [100; 10]);
        drop(release);
    }

    #[test]
    fn a_team_does_without_a_worker_whose_hook_panics() {
        let team = Team::with_hook(3, |idx| {
            if idx == 1 {
                fail(idx)
            }
        })
        .unwrap();
        let mut items = [0; 10];
        (0..100).for_each(|_| team.for_each(&mut items, |x| *x += 1));
        assert_eq!(items, [100; 10]);
    }

    #[test]
    fn no_more_workers_come_than_there_are_items_left_by_the_caller() {
        let (team, members) = (numbered(4), Mutex::new(HashSet::new()));
        for n_items in 1..=3 {
            for _ in 0..200 {
                team.for_each(&mut [(); 3][..n_items], |()| {
                    lock(&members).insert(MEMBER.get());
                    toil(200);
                });
            }
            assert!(lock(&members).iter().all(|&member| member < n_items), "{members:?}");
        }
    }

    #[test]
    fn dropping_a_team_ends_its_workers() {
        let token = Arc::new(());
        for wait in [0, 0, 3] {
            let held = Arc::clone(&token);
            let team = Team::with_hook(4, move |_| drop(Arc::clone(&held))).unwrap();
            team.for_each(&mut [0; 10], |x| *x += 1);
            // By then the workers spin or are parked.
            thread::sleep(Duration::from_millis(wait));
            drop(team);
            assert_eq!(Arc::strong_count(&token), 1);
        }
    }

    #[test]
    fn regions_miss_no_item_while_workers_spin_park_or_wake() {
        let mut random = 1_u64;
        for n_threads in 2..=4 {
            let (team, mut items) = (Team::new(n_threads).unwrap(), [0_u32; 8]);
            for round in 1..=2000 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                let pick = (random >> 40) as u32;
                match pick % 64 {
                    0 => thread::sleep(Duration::from_micros(u64::from(pick / 64 % 2000))),
                    1..=4 => (0..SPINS - 500 + pick / 64 % 1000).for_each(pause),
                    _ => {}
                }
                let used = &mut items[..2 + (pick / 64 % 7) as usize];
                used.fill(round - 1);
                team.for_each(used, |x| {
                    toil(*x as usize % 50);
                    *x += 1;
                });
                assert!(used.iter().all(|&x| x == round), "round {round}: {used:?}");
            }
        }
    }

    #[test]
    fn a_worker_that_parks_at_the_moment_of_opening_still_comes() {
        let (team, n_here) = (Team::new(2).unwrap(), AtomicU32::new(0));
        for round in 0..200 {
            // The worker has looked about as often since the region before; every so often it has long been parked.
            (0..SPINS - 500 + round * 7 % 1000).for_each(pause);
            if round % 20 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            // Does not return unless two members come.
            team.for_each(&mut [(); 2], |()| {
                n_here.fetch_add(1, SeqCst);
                let mut look = 0;
                while n_here.load(SeqCst) < 2 * (round + 1) {
                    pause(look);
                    look += 1;
                }
            });
        }
    }

    #[test]
    fn a_caller_that_blocks_for_a_long_last_item_is_woken() {
        let (team, both_run) = (numbered(2), Barrier::new(2));
        for _ in 0..10 {
            team.for_each(&mut [(); 2], |()| {
                both_run.wait();
                if MEMBER.get() == 1 {
                    thread::sleep(Duration::from_millis(3));
                }
            });
        }
    }

    #[test]
    fn the_global_team_has_a_member_for_each_thread_that_may_run() {
        let n_threads = thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(Team::global().n_threads(), n_threads);
        assert_eq!(
            format!("{:?}", Team::global()),
            format!("Team {{ n_threads: {n_threads}, .. }}")
        );
    }

    #[test]
    fn a_team_too_large_for_its_gate_is_refused() {
        let error = Team::new(usize::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
