//! What the system says about its processor, and pinning.

use std::fs;

use serde::Serialize;

/// Sizes of the data caches of one core in bytes; the third level may be shared, and is 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Caches {
    /// First level.
    pub l1: usize,
    /// Second level.
    pub l2: usize,
    /// Third level.
    pub l3: usize,
}

/// The sizes that Linux reports for the first core; elsewhere those of a common server core.
#[must_use]
pub fn caches() -> Caches {
    let size_of_level = |level| parse_size(&property_of_level(level, "size")?);
    match (size_of_level("1"), size_of_level("2")) {
        (Some(l1), Some(l2)) => Caches { l1, l2, l3: size_of_level("3").unwrap_or(0) },
        _ => Caches { l1: 32 << 10, l2: 1 << 20, l3: 32 << 20 },
    }
}

/// Number of processors that share the third level with the first core; all of them where the system does not say.
pub(super) fn sharers_of_l3() -> usize {
    property_of_level("3", "shared_cpu_list")
        .and_then(|list| parse_cpu_list(&list))
        .unwrap_or(usize::MAX)
}

/// What Linux says about the first core's cache for data of that level.
fn property_of_level(level: &str, property: &str) -> Option<String> {
    (0..8).find_map(|index| {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name| fs::read_to_string(format!("{folder}/{name}")).ok();
        let is_it = read("type")?.trim() != "Instruction" && read("level")?.trim() == level;
        if is_it { Some(read(property)?.trim().to_owned()) } else { None }
    })
}

/// Number of processors in a list such as `0-3,8,10-11`.
fn parse_cpu_list(list: &str) -> Option<usize> {
    list.split(',').try_fold(0, |n, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(n + (last + 1).checked_sub(first)?)
    })
}

/// `32K` or `8M` in bytes.
fn parse_size(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits.parse::<usize>().ok()?.checked_shl(shift)
}

/// Number of cores that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The processor's name; on x86 with family and model, since cloud machines name no more than the brand.
#[must_use]
pub fn cpu_name() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| name_in(&text))
        .or_else(|| {
            let output = std::process::Command::new("sysctl")
                .args(["-n", "machdep.cpu.brand_string"])
                .output()
                .ok()?;
            let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
            (!name.is_empty()).then_some(name)
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn name_in(cpuinfo: &str) -> Option<String> {
    let field = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            line.split_once(':').filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
        })
    };
    let name = field("model name")?;
    Some(match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.to_owned(),
    })
}

/// Pins the calling thread to the `index`-th core that it may use, and says whether that worked.
///
/// Threads that it spawns afterwards inherit that.
pub fn pin(index: usize) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let Ok(allowed) = sched_getaffinity(None) else { return false };
        let Some(core) = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).nth(index)
        else {
            return false;
        };
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = index;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names_are_read_as_linux_writes_them() {
        assert_eq!(
            (parse_size("32K"), parse_size("8M"), parse_size("512"), parse_size("")),
            (Some(32 << 10), Some(8 << 20), Some(512), None)
        );
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n";
        assert_eq!(name_in(text).as_deref(), Some("AMD EPYC (family 25, model 17)"));
        assert_eq!(name_in("BogoMIPS : 50\n"), None);
    }

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, n) in [("0", 1), ("0-7", 8), ("0-3,8,10-11", 7)] {
            assert_eq!(parse_cpu_list(list), Some(n), "{list}");
        }
        for list in ["", "a", "3-1", "0-"] {
            assert_eq!(parse_cpu_list(list), None, "{list}");
        }
        assert!(sharers_of_l3() > 0);
    }

    #[test]
    fn caches_grow_with_their_level() {
        let caches = caches();
        assert!(caches.l1 < caches.l2 && (caches.l3 == 0 || caches.l2 < caches.l3), "{caches:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_can_be_pinned_to_each_of_its_cores_and_to_no_other() {
        std::thread::scope(|scope| {
            for index in 0..cores() {
                assert!(scope.spawn(move || pin(index)).join().unwrap());
            }
            assert!(!scope.spawn(|| pin(1 << 20)).join().unwrap());
        });
    }
}
