//! What is done to whole volumes, and to the size. It waits for a moment in which the cluster is whole, as a wish: with
//! two of three volumes gone, so is the cluster.

use std::time::Duration;

use podkv_node::storage::Crash;
use rand::RngExt as _;

use super::World;
use super::clock::nanos;
use super::disk::Volume;
use super::nemesis::Fault;
use super::plan::Planted;
use crate::history::Nanos;

/// A wish is given up after that. Nothing else is begun meanwhile, so most come true.
const PATIENCE: Duration = Duration::from_secs(4);
/// A snapshot of a volume is put back once the pod has started again and has caught up.
const REWIND_PATIENCE: Duration = Duration::from_secs(12);
/// How often it is looked whether all is whole: that costs as much as a tick.
const LOOK: Duration = Duration::from_millis(10);

/// A rotten state was noticed.
pub const STATE_NOTICED: &str = "rotten state noticed";

pub struct Wish {
    fault: Fault,
    until: Nanos,
    look_at: Nanos,
}

impl World {
    pub(super) fn wish(&mut self, fault: Fault) {
        self.wish_for(fault, PATIENCE);
    }

    fn wish_for(&mut self, fault: Fault, patience: Duration) {
        let now = self.clock.now();
        self.nemesis.wish = Some(Wish {
            fault,
            until: now + nanos(patience),
            look_at: now,
        });
    }

    /// True as long as there is a wish. Makes it come true if it can.
    pub(super) fn wish_waits(&mut self) -> bool {
        let now = self.clock.now();
        let Some(wish) = &mut self.nemesis.wish else {
            return false;
        };
        if wish.look_at > now {
            return true;
        }
        wish.look_at = now + nanos(LOOK);
        let (fault, until) = (wish.fault, wish.until);
        // A rotten volume may be as good as gone.
        let spoiled = self
            .pods
            .iter()
            .any(|pod| pod.rotten.is_some() || pod.own_volume.is_some());
        if spoiled || !self.is_settled() {
            if now >= until {
                self.nemesis.wish = None;
            }
            return now < until;
        }
        self.nemesis.wish = None;
        if let Some((kind, what)) = self.make(fault) {
            self.count(kind);
            self.note(what);
        }
        self.nemesis.wish.is_some()
    }

    pub(super) fn scale(&mut self) -> Option<(&'static str, String)> {
        let to = if self.set.replicas() == 3 { 5 } else { 3 };
        self.set.scale(to);
        Some(("scale", format!("the StatefulSet is scaled to {to}")))
    }

    pub(super) fn copy_volume(&mut self, nth: usize) -> Option<(&'static str, String)> {
        let pod = &mut self.pods[nth];
        if pod.own_volume.is_some() || pod.rotten.is_some() {
            return None;
        }
        pod.copy = Some((pod.starts, pod.disk.copy()));
        Some(("volume snapshot", format!("{} is copied", pod.name)))
    }

    /// Called when all is whole.
    pub(super) fn volume_fault(&mut self, fault: Fault) -> Option<(&'static str, String)> {
        if fault == Fault::RewindVolume {
            return self.rewind();
        }
        let nth = self.victim();
        if fault == Fault::WrongVolume {
            return self.mount_another(nth);
        }
        let pod = &mut self.pods[nth];
        pod.running.as_ref()?;
        pod.disk.crash(Crash::Process);
        if let Fault::RotLog | Fault::RotState = fault {
            let (done, kind, noticed) = match fault {
                // The disk is in memory, and does not fail.
                Fault::RotLog => (pod.disk.rot_log().ok()?, "rotten log", "rotten log noticed"),
                _ => (pod.disk.rot_state(), "rotten state", STATE_NOTICED),
            };
            pod.rotten = done.then_some(noticed);
            return done.then(|| (kind, format!("{kind}: {}", pod.name)));
        }
        match self.plan.planted {
            // Nothing can fail here: the disk is in memory, and nobody is attached.
            Some(Planted::ReusedNodeId) => pod.disk.empty_but_named().ok()?,
            _ => pod.disk.replace(Volume::default()),
        }
        Some(("lost volume", format!("lost volume: {}", pod.name)))
    }

    /// Puts back a snapshot of a volume, if there is one that its peers can tell from an ordinary restart: the pod was
    /// started since. If there is none, one is made, and the pod is started again.
    fn rewind(&mut self) -> Option<(&'static str, String)> {
        let fit = self.pods.iter().position(|pod| {
            let is_older = |(starts, _): &(u64, Volume)| *starts < pod.starts;
            pod.running.is_some() && pod.copy.as_ref().is_some_and(is_older)
        });
        let Some(nth) = fit else {
            let nth = self.victim();
            self.pods[nth].running.as_ref()?;
            let copied = self.copy_volume(nth)?;
            let pod = &mut self.pods[nth];
            pod.disk.crash(Crash::Process);
            pod.start_soon = true;
            self.wish_for(Fault::RewindVolume, REWIND_PATIENCE);
            return Some(copied);
        };
        let pod = &mut self.pods[nth];
        let (_, copy) = pod.copy.take()?;
        pod.disk.crash(Crash::Process);
        pod.disk.replace(copy);
        let name = pod.name.clone();
        self.recorder.rewound(&name);
        Some(("rewound volume", format!("rewound volume: {name}")))
    }

    /// The volume of another pod is mounted, until somebody has noticed.
    fn mount_another(&mut self, nth: usize) -> Option<(&'static str, String)> {
        let pods = self.set.replicas() as usize;
        let next = self.nemesis.rng.random_range(1..pods.max(2));
        let other = self.pods[(nth + next) % pods].disk.copy();
        let pod = &mut self.pods[nth];
        pod.running.as_ref()?;
        if pods < 2 {
            return None;
        }
        pod.disk.crash(Crash::Process);
        // As it is after the crash.
        pod.own_volume = Some(pod.disk.copy());
        pod.disk.replace(other);
        Some(("wrong volume", format!("wrong volume: {}", pod.name)))
    }
}
