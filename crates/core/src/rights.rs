//! What a caller may do, by the users and roles of one state.
//!
//! Rights are sets of keys, kept as intervals that are sorted, apart from each other and do not touch: what several
//! permissions allow together is allowed.
//!
//! ```text
//!   permissions   [a ─── c)  [c ─ e)        [k]
//!   rights        [a ─────────── e)        [k]        b..d is covered, d..f is not
//! ```
//!
//! What a command needs is more than the keys that it writes. Each of these was a hole in etcd once:
//! a compare tells what a key holds, and so does `prev_kv`; an operation of either branch, however
//! deep, is one that may run; a watch that ends nowhere sees every key to the end; and who attaches a
//! key to a lease, or revokes it, decides when all of the lease's keys go.
//!
//! What is kept for a large value stands under names of its own, and whoever may read or write the value's key may do so with
//! each of them (see `podkv_api::large`).

use std::sync::Arc;

use bytes::Bytes;
use podkv_api::{
    KeyRange, LeaseId, Op, Permission, PermissionKind, Put, RangeEnd, Reason, Txn, large,
};

use crate::auth::{Caller, read_auth, read_role, read_user};
use crate::command::Command;
use crate::lease;
use crate::meta::read_meta;
use crate::restore;
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    Everything,
    Some(KeyRights),
}

/// What a caller may do who may not do everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRights {
    read: Keys,
    write: Keys,
    roles: Vec<String>,
}

/// The rights of a caller. Refused if it must say who it is and has not, or is not that any more.
pub fn rights(view: &dyn View, caller: &Caller) -> Result<Result<Rights, Reason>, ViewError> {
    // What a restore has brought of it counts when the restore has ended.
    if !read_auth(view)?.enabled || restore::under_way(view, &read_meta(view)?)? {
        return Ok(Ok(Rights::Everything));
    }
    let Caller::User { name, revision } = caller else {
        return Ok(Err(Reason::CredentialsMissing));
    };
    let Some(user) = read_user(view, name)?.filter(|user| user.revision == *revision) else {
        return Ok(Err(Reason::Unauthenticated));
    };
    if user.is_root() {
        return Ok(Ok(Rights::Everything));
    }
    let (mut read, mut write) = (Vec::new(), Vec::new());
    for role in &user.roles {
        for permission in read_role(view, role)?.unwrap_or_default().permissions {
            let Permission { kind, range } = permission.into();
            if kind != PermissionKind::Write {
                read.push(interval(&range));
            }
            if kind != PermissionKind::Read {
                write.push(interval(&range));
            }
        }
    }
    Ok(Ok(Rights::Some(KeyRights {
        read: Keys::merged(read),
        write: Keys::merged(write),
        roles: user.roles,
    })))
}

impl Rights {
    pub fn may_read(&self, range: &KeyRange) -> Result<(), Reason> {
        self.allow(|rights| rights.read.cover(range))
    }

    pub fn may_write(&self, range: &KeyRange) -> Result<(), Reason> {
        self.allow(|rights| rights.write.cover(range))
    }

    /// For what concerns the cluster, and no key.
    pub fn may_administer(&self) -> Result<(), Reason> {
        self.allow(|_| false)
    }

    /// A user may see its own roles.
    pub fn may_see_role(&self, role: &str) -> Result<(), Reason> {
        self.allow(|rights| rights.roles.iter().any(|own| own == role))
    }

    /// Whether every key that is attached to a lease may be read.
    pub fn may_read_lease(
        &self,
        view: &dyn View,
        id: LeaseId,
    ) -> Result<Result<(), Reason>, ViewError> {
        self.allow_lease(view, id, |rights| &rights.read)
    }

    /// Whether every key that is attached to a lease may be written.
    pub fn may_write_lease(
        &self,
        view: &dyn View,
        id: LeaseId,
    ) -> Result<Result<(), Reason>, ViewError> {
        self.allow_lease(view, id, |rights| &rights.write)
    }

    fn allow_lease(
        &self,
        view: &dyn View,
        id: LeaseId,
        keys: impl Fn(&KeyRights) -> &Keys,
    ) -> Result<Result<(), Reason>, ViewError> {
        let Rights::Some(rights) = self else {
            return Ok(Ok(()));
        };
        let keys = keys(rights);
        // One seek for each gap, however many keys the lease has.
        for (start, end) in keys.gaps_outside(&interval(&large::own_names())) {
            if lease::has_key_between(view, id, &start, end.as_deref())? {
                return Ok(Err(Reason::PermissionDenied));
            }
        }
        // A lease of uploads has a record for each of them, and nothing else here.
        for name in lease::attached_within(view, id, &large::own_names())? {
            if !keys.cover(&KeyRange::key(name)) {
                return Ok(Err(Reason::PermissionDenied));
            }
        }
        Ok(Ok(()))
    }

    fn allow(&self, enough: impl Fn(&KeyRights) -> bool) -> Result<(), Reason> {
        match self {
            Rights::Some(rights) if !enough(rights) => Err(Reason::PermissionDenied),
            _ => Ok(()),
        }
    }

    /// Whether all that a transaction may do is allowed, whichever way it goes.
    pub fn may_run(&self, view: &dyn View, txn: &Txn) -> Result<Result<(), Reason>, ViewError> {
        for compare in &txn.compare {
            if let Err(reason) = self.may_read(&compare.range) {
                return Ok(Err(reason));
            }
        }
        for op in txn.then.iter().chain(&txn.or_else) {
            let allowed = match op {
                Op::Put(put) => self.may_put(view, put)?,
                Op::Delete(delete) => self.may_delete(&delete.range, delete.prev_kv),
                Op::Range(range) => self.may_read(&range.range),
                Op::Txn(txn) => self.may_run(view, txn)?,
            };
            if allowed.is_err() {
                return Ok(allowed);
            }
        }
        Ok(Ok(()))
    }

    fn may_put(&self, view: &dyn View, put: &Put) -> Result<Result<(), Reason>, ViewError> {
        let key = KeyRange::key(put.key.clone());
        let mut allowed = self.may_write(&key);
        if put.prev_kv {
            allowed = allowed.and_then(|()| self.may_read(&key));
        }
        match put.lease {
            Some(lease) if allowed.is_ok() => self.may_write_lease(view, lease),
            _ => Ok(allowed),
        }
    }

    fn may_delete(&self, range: &KeyRange, prev_kv: bool) -> Result<(), Reason> {
        self.may_write(range)?;
        match prev_kv {
            true => self.may_read(range),
            false => Ok(()),
        }
    }

    /// Whether a command may run. Whose a session is, is looked at where it is used.
    fn may_execute(
        &self,
        view: &dyn View,
        command: &Command,
    ) -> Result<Result<(), Reason>, ViewError> {
        Ok(match command {
            Command::Put(put) => self.may_put(view, put)?,
            Command::Delete(delete) => self.may_delete(&delete.range, delete.prev_kv),
            Command::Txn(txn) => self.may_run(view, txn)?,
            Command::LeaseRevoke { id } => self.may_write_lease(view, *id)?,
            // Whoever is known may: they touch no key.
            Command::LeaseGrant { .. }
            | Command::LeaseKeepAlive { .. }
            | Command::SessionOpen { .. }
            | Command::SessionKeepAlive { .. }
            | Command::SessionClose { .. } => Ok(()),
            Command::Compact { .. }
            | Command::Expire { .. }
            | Command::Sweep { .. }
            | Command::SetRetention(_)
            | Command::SetFeatureLevel(_)
            | Command::RaiseRevision { .. }
            | Command::RestoreBegin { .. }
            | Command::RestoreRecords { .. }
            | Command::RestoreEnd { .. }
            | Command::RestoreDiscard { .. }
            | Command::SetDesiredSize(_)
            | Command::Freeze { .. }
            | Command::Thaw { .. }
            | Command::RaiseAlarm(_)
            | Command::ClearAlarm(_)
            | Command::Auth(_)
            | Command::As { .. } => self.may_administer(),
        })
    }
}

impl State<'_> {
    /// The rights of a caller, looked up once a batch.
    pub(crate) fn rights(
        &mut self,
        caller: &Caller,
    ) -> Result<Result<Arc<Rights>, Reason>, ViewError> {
        if let Some(known) = self.rights_cache.get(caller) {
            return Ok(known.clone());
        }
        let found = rights(&self.overlay, caller)?.map(Arc::new);
        self.rights_cache.insert(caller.clone(), found.clone());
        Ok(found)
    }

    /// To be called after every change of users, roles and permissions.
    pub(crate) fn auth_has_changed(&mut self) {
        self.auth_changed = true;
        self.rights_cache.clear();
    }

    /// Whether the caller may do what it asks for, as the state is now.
    pub(crate) fn permit(
        &mut self,
        caller: &Caller,
        command: &Command,
    ) -> Result<Result<(), Reason>, ViewError> {
        match self.rights(caller)? {
            Ok(rights) if *rights == Rights::Everything => Ok(Ok(())),
            Ok(rights) => rights.may_execute(&self.overlay, command),
            Err(reason) => Ok(Err(reason)),
        }
    }
}

/// From here on, and before there; `None` is no end.
type Interval = (Bytes, Option<Bytes>);

fn interval(range: &KeyRange) -> Interval {
    let end = match &range.end {
        RangeEnd::Single => Some(schema::just_after(&range.start)),
        // An empty range touches no key; it counts as the one that it begins with.
        RangeEnd::Before(end) if *end <= range.start => Some(schema::just_after(&range.start)),
        RangeEnd::Before(end) => Some(end.clone()),
        RangeEnd::Unbounded => None,
    };
    (range.start.clone(), end)
}

/// A set of keys: intervals in order, none of which touches the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys(Vec<Interval>);

impl Keys {
    fn merged(mut intervals: Vec<Interval>) -> Self {
        intervals.sort();
        let mut merged: Vec<Interval> = Vec::new();
        for (start, end) in intervals {
            match merged.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| *last >= start) => {
                    *last = match (last.take(), end) {
                        (Some(one), Some(other)) => Some(one.max(other)),
                        _ => None,
                    };
                }
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    fn cover(&self, range: &KeyRange) -> bool {
        self.cover_literally(range)
            || (range.is_single()
                && large::owner(&range.start)
                    .is_some_and(|owner| self.cover_literally(&KeyRange::key(owner))))
    }

    fn cover_literally(&self, range: &KeyRange) -> bool {
        let (start, end) = interval(range);
        let after = self.0.partition_point(|(first, _)| *first <= start);
        let Some((_, last)) = after.checked_sub(1).and_then(|place| self.0.get(place)) else {
            return false;
        };
        match (last, end) {
            (None, _) => true,
            (Some(last), Some(end)) => *last >= end,
            (Some(_), None) => false,
        }
    }

    /// The keys that are not in the set.
    fn gaps(&self) -> Vec<Interval> {
        let mut gaps = Vec::new();
        let mut from = Some(Bytes::new());
        for (start, end) in &self.0 {
            if let Some(from) = from.filter(|from| from < start) {
                gaps.push((from, Some(start.clone())));
            }
            from = end.clone();
        }
        gaps.extend(from.map(|from| (from, None)));
        gaps
    }

    /// The same, without what lies in an interval that has an end.
    fn gaps_outside(&self, without: &Interval) -> Vec<Interval> {
        let (hole_start, hole_end) = (&without.0, without.1.clone().unwrap_or_default());
        let mut gaps = Vec::new();
        for (start, end) in self.gaps() {
            let before = match &end {
                Some(end) => end.min(hole_start),
                None => hole_start,
            };
            if start < *before {
                gaps.push((start.clone(), Some(before.clone())));
            }
            let after = start.max(hole_end.clone());
            if end.as_ref().is_none_or(|end| after < *end) {
                gaps.push((after, end));
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(ranges: &[KeyRange]) -> Keys {
        Keys::merged(ranges.iter().map(interval).collect())
    }

    #[test]
    fn the_rights_of_a_key_are_those_of_what_is_kept_for_it() {
        let set = keys(&[KeyRange::key("app/x"), KeyRange::prefix("web/")]);
        let upload = large::UploadId(7);
        let check = |key: &[u8], expected| {
            for name in [
                large::record_key(upload, key),
                large::chunk_key(upload, 3, key),
            ] {
                assert_eq!(set.cover(&KeyRange::key(name)), expected, "{key:?}");
            }
        };
        check(b"app/x", true);
        check(b"app/y", false);
        check(b"web/a/b", true);
        check(b"web", false);
        // Only one by one.
        assert!(!set.cover(&large::records()));
        assert!(!set.cover(&large::chunks_from(upload)));
        assert!(keys(&[KeyRange::all()]).cover(&large::records()));
    }

    #[test]
    fn gaps_without_an_interval_are_the_others() {
        let check = |ranges: &[KeyRange],
                     without: (&'static str, &'static str),
                     expected: &[(&str, Option<&str>)]| {
            let without = interval(&KeyRange::between(without.0, without.1));
            let found = keys(ranges).gaps_outside(&without);
            let expected: Vec<Interval> = expected
                .iter()
                .map(|(start, end)| {
                    let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
                    (owned(start), end.map(owned))
                })
                .collect();
            assert_eq!(found, expected);
        };
        check(&[], ("c", "f"), &[("", Some("c")), ("f", None)]);
        let middle = [KeyRange::between("d", "e")];
        check(&middle, ("c", "f"), &[("", Some("c")), ("f", None)]);
        check(
            &middle,
            ("a", "b"),
            &[("", Some("a")), ("b", Some("d")), ("e", None)],
        );
        check(&middle, ("c", "d"), &[("", Some("c")), ("e", None)]);
        check(&[KeyRange::all()], ("c", "f"), &[]);
        check(
            &[KeyRange::between("b", "c")],
            ("c", "f"),
            &[("", Some("b")), ("f", None)],
        );
    }

    /// Against a set of single keys, over every pair of bounds.
    #[test]
    fn what_permissions_allow_together_is_allowed() {
        let alphabet: Vec<Bytes> = (b'a'..=b'h').map(|byte| Bytes::from(vec![byte])).collect();
        let sets = [
            vec![],
            vec![KeyRange::key("c")],
            vec![KeyRange::between("a", "c"), KeyRange::between("c", "e")],
            vec![
                KeyRange::between("b", "f"),
                KeyRange::between("c", "d"),
                KeyRange::key("h"),
            ],
            vec![KeyRange::from("e"), KeyRange::key("a")],
            vec![KeyRange::from("b"), KeyRange::between("c", "d")],
            vec![KeyRange::all()],
        ];
        for ranges in &sets {
            let set = keys(ranges);
            let has = |key: &Bytes| ranges.iter().any(|range| range.contains(key));
            let in_gap = |key: &Bytes| {
                let mut gaps = set.gaps().into_iter();
                gaps.any(|(start, end)| *key >= start && end.is_none_or(|end| *key < end))
            };
            for (at, start) in alphabet.iter().enumerate() {
                assert_eq!(
                    set.cover(&KeyRange::key(start.clone())),
                    has(start),
                    "{ranges:?}"
                );
                assert_eq!(in_gap(start), !has(start), "{ranges:?} {start:?}");
                for end in alphabet.iter().skip(at + 1) {
                    let range = KeyRange::between(start.clone(), end.clone());
                    let all = alphabet.iter().filter(|key| range.contains(key)).all(has);
                    // Between two letters there are more keys than the letters.
                    let single = ranges
                        .iter()
                        .any(|range| range.is_single() && range.start == start);
                    assert_eq!(set.cover(&range), all && !single, "{ranges:?} {range:?}");
                }
                let open = KeyRange::from(start.clone());
                let has_end = ranges.iter().any(|range| range.end == RangeEnd::Unbounded);
                let all = alphabet.iter().skip(at).all(has);
                assert_eq!(set.cover(&open), has_end && all, "{ranges:?} {open:?}");
            }
        }
    }
}
