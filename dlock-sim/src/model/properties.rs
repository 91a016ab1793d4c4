//! What must be true of every state, and what must be reached so that the rest means something.

use std::time::Duration;

use dlock_core::Place;
use dlock_testkit::memory::Request;
use stateright::Property;

use super::world::{Content, World};
use super::{Bounds, Process, TERMS, Walk};

pub(super) fn of(bounds: Bounds) -> Vec<Property<Walk>> {
    let mut properties = promised();
    if bounds.wants[1] > 0 {
        properties.push(Property::sometimes("one holds and the other waits", |_, world: &World| {
            world.clients.iter().any(|process| process.client.holds())
                && world.clients.iter().any(|process| process.client.is_acquiring())
        }));
    }
    properties.push(Property::sometimes("two were granted, one after the other", |_, world: &World| {
        world.store.grants(&TERMS.key).len() > 1
    }));
    if bounds.cancels > 0 && bounds.slow > 0 {
        properties
            .push(Property::sometimes("a copy of a claim outlives its release", |_, world: &World| outlived_its_release(world)));
    }
    if bounds.pauses > 0 && bounds.writes > 1 {
        properties.push(Property::sometimes("a write comes too late and is refused", |_, world: &World| {
            world.accepted.is_some_and(|accepted| world.writes.iter().any(|late| *late < accepted))
        }));
    }
    if bounds.pauses > 0 && bounds.place == Place::Queue {
        properties.push(Property::sometimes("silence ends belief", |_, world: &World| {
            world.clients.iter().any(|process| process.client.lost_by_silence())
        }));
        properties.push(Property::sometimes("another is granted what a paused client held", |_, world: &World| {
            world.clients.iter().any(|process| process.paused && process.client.holds())
                && world.clients.iter().any(|process| !process.paused && process.believes(world.now))
        }));
    }
    properties
}

fn promised() -> Vec<Property<Walk>> {
    vec![
        Property::always("belief is never false", |_, world: &World| belief_is_true(world)),
        Property::always("two never believe", |_, world: &World| {
            world.interfered || world.clients.iter().filter(|process| process.believes(world.now)).count() <= 1
        }),
        Property::always("tokens grow", |_, world: &World| {
            world.store.grants(&TERMS.key).windows(2).all(|pair| pair[0].token < pair[1].token)
        }),
        Property::always("what was undone stays undone", |_, world: &World| {
            world.store.claims().iter().all(|(_, _, claim)| !world.undone.contains(claim))
        }),
        Property::always("no orphan is renewed", |_, world: &World| {
            let answered =
                |(_, session, claim): &(_, _, _)| world.clients.iter().all(|process| process.client.answers_for(session, *claim));
            world.store.claims().iter().all(answered)
        }),
        Property::always("whoever waits is moved", |_, world: &World| world.clients.iter().all(|process| is_moved(process, world))),
        Property::always("the resource accepts nothing older than before", |_, world: &World| !world.overwritten),
        Property::always("the resource refuses no holder", |_, world: &World| !world.refused_holder),
    ]
}

/// Unless an operator interfered, what a client believes to hold is what the store says holds.
fn belief_is_true(world: &World) -> bool {
    let holder = world.store.holder_of(&TERMS.key).map(|(_, claim, _)| claim);
    world.interfered || world.clients.iter().filter_map(|process| process.believed(world.now)).all(|claim| Some(claim) == holder)
}

/// How long a client may do nothing for its acquisition: no attempt takes longer, and no pause.
const STILL: Duration = Duration::from_millis(100);

/// Whether an acquisition goes on: it waits for somebody who has the key, or does something itself before long.
fn is_moved(process: &Process, world: &World) -> bool {
    if process.paused || !process.client.is_acquiring() {
        return true;
    }
    match process.client.waits_for() {
        Some((session, claim, _)) => {
            let held = world.store.holder_of(&TERMS.key).is_some_and(|(_, holder, _)| holder != claim.id);
            let ahead = held || world.store.ahead_of(session, claim).is_some_and(|others| others > 0);
            ahead || process.woken(&world.store).is_some()
        }
        None => process.next_moment() <= world.now.plus(STILL),
    }
}

/// Whether a copy of a claim is under way whose release was answered.
fn outlived_its_release(world: &World) -> bool {
    world.messages.iter().any(|message| match &message.content {
        Content::Request(Request::Claim { claim, .. }) => world.undone.contains(&claim.id),
        _ => false,
    })
}
