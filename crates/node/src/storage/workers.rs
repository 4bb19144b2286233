//! Where work runs that waits for the storage: never on an async thread.
//!
//! | | in a process | in a simulated world |
//! | --- | --- | --- |
//! | [`Workers::spawn`] | a thread of the runtime's blocking pool | a task, when the disk's turn comes |
//! | [`Workers::start`] | a thread of its own | a task, which waits for the disk's turn before each job |
//!
//! A store says by its `workers` which it is, so nobody else knows of the difference. The simulation needs it
//! because threads end in an order that no seed decides. A simulated disk holds everything in memory, so its work
//! never blocks.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// How long a simulated disk takes.
pub trait DiskTime: Send + Sync + 'static {
    /// Ends when the disk gets to the next piece of work.
    fn turn(&self) -> BoxFuture<'static, ()>;
}

/// Runs work that blocks. Threads by default.
#[derive(Clone, Default)]
pub struct Workers(Option<Arc<dyn DiskTime>>);

impl Workers {
    /// Tasks in place of threads, on the runtime that they are started on.
    pub fn simulated(time: Arc<dyn DiskTime>) -> Self {
        Self(Some(time))
    }

    /// Runs `work`. It comes to an end also if nobody waits for it.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        match &self.0 {
            None => tokio::task::spawn_blocking(work),
            Some(time) => tokio::spawn(after(time.turn(), work)),
        }
    }

    /// The same, as one of `set`.
    pub(crate) fn spawn_on<T: Send + 'static>(
        &self,
        set: &mut JoinSet<T>,
        work: impl FnOnce() -> T + Send + 'static,
    ) {
        match &self.0 {
            None => set.spawn_blocking(work),
            Some(time) => set.spawn(after(time.turn(), work)),
        };
    }

    /// Starts a worker of its own: `handle` gets one job after the other, and the queue, to take more from it. It ends
    /// when `handle` says so, or when nobody can send a job any more. `taken` is called when a job has been taken: from
    /// then on the disk is waited for.
    pub(crate) fn start<J: Send + 'static>(
        &self,
        name: &str,
        mut jobs: mpsc::Receiver<J>,
        mut taken: impl FnMut() + Send + 'static,
        mut handle: impl FnMut(J, &mut mpsc::Receiver<J>) -> ControlFlow<()> + Send + 'static,
    ) -> io::Result<Worker> {
        let Some(time) = self.0.clone() else {
            let thread = std::thread::Builder::new().name(name.into());
            let thread = thread.spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    taken();
                    if handle(job, &mut jobs).is_break() {
                        break;
                    }
                }
            })?;
            return Ok(Worker(End::Thread(thread)));
        };
        let task = tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                taken();
                time.turn().await;
                if handle(job, &mut jobs).is_break() {
                    break;
                }
            }
        });
        Ok(Worker(End::Task(task)))
    }
}

async fn after<T>(turn: BoxFuture<'static, ()>, work: impl FnOnce() -> T) -> T {
    turn.await;
    work()
}

/// A worker that was started.
pub(crate) struct Worker(End);

enum End {
    Thread(std::thread::JoinHandle<()>),
    Task(JoinHandle<()>),
}

impl Worker {
    /// Waits until it has ended. False if it panicked.
    pub async fn join(self) -> bool {
        match self.0 {
            End::Thread(thread) => {
                let joined = tokio::task::spawn_blocking(move || thread.join()).await;
                matches!(joined, Ok(Ok(())))
            }
            End::Task(task) => task.await.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    struct OneSecond;

    impl DiskTime for OneSecond {
        fn turn(&self) -> BoxFuture<'static, ()> {
            Box::pin(sleep(Duration::from_secs(1)))
        }
    }

    async fn handles_all(workers: &Workers) {
        let (jobs, queue) = mpsc::channel(8);
        let (seen, mut told) = mpsc::unbounded_channel();
        let (begun, mut taken) = mpsc::unbounded_channel();
        let begins = move || begun.send(()).unwrap();
        let worker = workers.start("test", queue, begins, move |job: u32, more| {
            let mut batch = vec![job];
            while let Ok(job) = more.try_recv() {
                batch.push(job);
            }
            let last = batch.contains(&9);
            taken.try_recv().expect("the job was taken before");
            seen.send(batch).unwrap();
            match last {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        for job in [1, 2, 9] {
            jobs.send(job).await.unwrap();
        }
        assert!(worker.unwrap().join().await);
        let mut all = Vec::new();
        while let Some(batch) = told.recv().await {
            all.extend(batch);
        }
        assert_eq!(all, [1, 2, 9]);
    }

    #[tokio::test]
    async fn a_thread_and_a_task_do_the_same_work() {
        handles_all(&Workers::default()).await;
        tokio::time::pause();
        handles_all(&Workers::simulated(Arc::new(OneSecond))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn simulated_work_takes_the_time_of_the_disk_and_needs_no_waiter() {
        let workers = Workers::simulated(Arc::new(OneSecond));
        let begun = Instant::now();
        assert_eq!(workers.spawn(|| 7).await.unwrap(), 7);
        assert_eq!(begun.elapsed(), Duration::from_secs(1));

        let (done, mut told) = mpsc::unbounded_channel();
        drop(workers.spawn(move || done.send(()).unwrap()));
        assert_eq!(told.recv().await, Some(()));
    }
}
