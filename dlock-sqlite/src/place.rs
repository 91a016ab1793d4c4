//! Where a file of locks is, and where one can be: by one name only, on a file system of this host, in a folder that can be written.
//!
//! The file is never opened here: closing it would end all locks that SQLite has on it in this process.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, FileType, RenameFlags, StatxFlags};
use rustix::io::Errno;

use crate::refusal::OpenError;

/// A file that may be one of locks.
pub(crate) struct Found {
    /// Without links: SQLite keeps its log beside the file that they lead to.
    pub(crate) path: PathBuf,
    /// Whether it was made now.
    pub(crate) is_new: bool,
}

/// How often a file is looked for again that is being made or removed at this moment, and after which pause.
const LOOKED_AGAIN: u32 = 10;
const LOOKED_AFTER: Duration = Duration::from_millis(10);

/// The file that goes by this name, made for nobody but this user if there is none.
pub(crate) fn find(path: &Path) -> Result<Found, OpenError> {
    make_folder(folder_of(path))?;
    let mut looked = 0;
    loop {
        match find_once(path) {
            Err(error) if looked < LOOKED_AGAIN && may_be_in_between(&error) => looked += 1,
            found => return found,
        }
        std::thread::sleep(LOOKED_AFTER);
    }
}

/// Whether another may be making or removing the file.
fn may_be_in_between(error: &OpenError) -> bool {
    match error {
        OpenError::Linked { .. } | OpenError::Leftovers { .. } => true,
        OpenError::Unreadable { source, .. } => source.kind() == ErrorKind::NotFound,
        _ => false,
    }
}

fn find_once(path: &Path) -> Result<Found, OpenError> {
    match std::fs::canonicalize(path) {
        Ok(real) => {
            check_folder(folder_of(&real))?;
            check_file(&real)?;
            Ok(Found { path: real, is_new: false })
        }
        // But for a link that leads nowhere.
        Err(source) if source.kind() == ErrorKind::NotFound && std::fs::symlink_metadata(path).is_err() => {
            let folder = folder_of(path);
            let folder = std::fs::canonicalize(folder).map_err(|source| OpenError::Unreadable { path: folder.into(), source })?;
            check_folder(&folder)?;
            let real = folder.join(path.file_name().unwrap_or_default());
            let mut left = ["-wal", "-shm"].into_iter().map(|suffix| beside(&real, suffix));
            if let Some(path) = left.find(|left| std::fs::symlink_metadata(left).is_ok()) {
                return Err(OpenError::Leftovers { path });
            }
            let is_new = make_file(&folder, &real)?;
            Ok(Found { path: real, is_new })
        }
        Err(source) => Err(OpenError::Unreadable { path: path.into(), source }),
    }
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// The name of what SQLite keeps beside a file.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// What of a file, its log and its folder this user is not allowed to read and write, if there is such.
pub(crate) fn what_is_denied(path: &Path) -> Option<OpenError> {
    let folder = folder_of(path);
    if is_denied(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        return Some(OpenError::ReadOnlyFolder { path: folder.into(), source: None });
    }
    let mut files = ["", "-wal", "-shm"].into_iter().map(|suffix| beside(path, suffix));
    let denied = files.find(|file| is_denied(file, Access::READ_OK | Access::WRITE_OK));
    denied.map(|path| OpenError::ReadOnlyFile { path })
}

/// Nobody is denied anything who is root; what is meant to be left alone by all is by them, too.
fn is_denied(path: &Path, access: Access) -> bool {
    matches!(rustix::fs::access(path, access), Err(Errno::ACCESS | Errno::PERM | Errno::ROFS))
        || std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().readonly())
}

fn check_folder(folder: &Path) -> Result<(), OpenError> {
    check_file_system(folder)?;
    if is_denied(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        return Err(OpenError::ReadOnlyFolder { path: folder.into(), source: None });
    }
    Ok(())
}

fn check_file(path: &Path) -> Result<(), OpenError> {
    check_file_system(path)?;
    let asked = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::MNT_ID;
    let look = |path: &Path| {
        rustix::fs::statx(CWD, path, AtFlags::empty(), asked)
            .map_err(|source| OpenError::Unreadable { path: path.into(), source: source.into() })
    };
    let (file, folder) = (look(path)?, look(folder_of(path))?);
    if FileType::from_raw_mode(file.stx_mode.into()) != FileType::RegularFile {
        return Err(OpenError::NoFile { path: path.into() });
    }
    if file.stx_nlink != 1 {
        return Err(OpenError::Linked { path: path.into() });
    }
    // Before Linux 5.8 the kernel does not tell.
    let tells_mounts = [&file, &folder].iter().all(|seen| seen.stx_mask & StatxFlags::MNT_ID.bits() != 0);
    if tells_mounts && file.stx_mnt_id != folder.stx_mnt_id {
        return Err(OpenError::MountedAlone { path: path.into() });
    }
    if is_denied(path, Access::READ_OK | Access::WRITE_OK) {
        return Err(OpenError::ReadOnlyFile { path: path.into() });
    }
    Ok(())
}

fn make_folder(folder: &Path) -> Result<(), OpenError> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder) {
        Ok(()) => Ok(()),
        Err(source) if is_read_only(&source) => Err(OpenError::ReadOnlyFolder { path: folder.into(), source: Some(source) }),
        Err(source) => Err(OpenError::Unreadable { path: folder.into(), source }),
    }
}

/// Makes an empty file for nobody but this user, if there is none; whether it did.
///
/// Under another name first, so that the file is never open but in SQLite, not even in this moment.
fn make_file(folder: &Path, path: &Path) -> Result<bool, OpenError> {
    let refuse = |source: std::io::Error| {
        if is_read_only(&source) {
            OpenError::ReadOnlyFolder { path: folder.into(), source: Some(source) }
        } else {
            OpenError::Unreadable { path: path.into(), source }
        }
    };
    let fresh = beside(path, &format!(".new-{:016x}", RandomState::new().build_hasher().finish()));
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(refuse)?;
    let put = rustix::fs::renameat_with(CWD, &fresh, CWD, path, RenameFlags::NOREPLACE).or_else(|error| match error {
        // A file system that knows no such flag; until the other name is removed, the file is refused.
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => rustix::fs::link(&fresh, path),
        error => Err(error),
    });
    // The name that is left over, if it is.
    _ = std::fs::remove_file(&fresh);
    match put {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(source) => Err(refuse(source.into())),
    }
}

fn is_read_only(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Refuses what is not on a file system of this host.
fn check_file_system(path: &Path) -> Result<(), OpenError> {
    let file_system =
        rustix::fs::statfs(path).map_err(|source| OpenError::Unreadable { path: path.into(), source: source.into() })?;
    match network(magic_of(&file_system)) {
        Some(kind) => Err(OpenError::NetworkFileSystem { path: path.into(), kind }),
        None => Ok(()),
    }
}

/// The kind by its magic number, of which only the low 32 bits are used.
#[allow(clippy::cast_lossless, clippy::unnecessary_cast)] // its type differs between architectures
fn magic_of(file_system: &rustix::fs::StatFs) -> u32 {
    (file_system.f_type as i64 & 0xFFFF_FFFF) as u32
}

/// What a file system is called whose files another host, or a server in between, may change; `None` for one of this host.
///
/// The numbers are those of statfs(2) and of the kernel's `magic.h`. All of FUSE counts, since sshfs and the like cannot be told from the rest.
fn network(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "NFS",
        0x0000_517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9p",
        0x00C3_6400 => "Ceph",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0000_564C => "NCP",
        0x0BD0_0BD0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x1983_0326 => "BeeGFS",
        0x2003_0528 => "OrangeFS",
        0x786F_4256 => "a shared folder of VirtualBox",
        0xBACB_ACBC => "a shared folder of VMware",
        0x7C7C_6673 => "a shared folder of Parallels",
        0xAAD7_AAEA => "PanFS",
        0xBEEF_DEAD => "SNFS",
        0x6163_6673 => "ACFS",
        0x0131_11A8 => "IBRIX",
        0xA501_FCF5 => "VxFS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_magic_numbers() {
        for (magic, kind) in [
            (0x6969, "NFS"),
            (0xFF53_4D42, "CIFS"),
            (0xFE53_4D42, "SMB2"),
            (0x6573_5546, "FUSE"),
            (0x0102_1997, "9p"),
            (0xAAD7_AAEA, "PanFS"),
        ] {
            assert_eq!(network(magic), Some(kind));
        }
    }

    #[test]
    fn file_systems_of_this_host_are_taken() {
        // ext4, xfs, btrfs, tmpfs, overlayfs, zfs, f2fs, exfat.
        for magic in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1, 0xF2F5_2010, 0x2011_BAB0] {
            assert_eq!(network(magic), None, "{magic:#x}");
        }
    }

    #[test]
    fn a_network_file_system_is_refused_with_what_would_be_right() {
        let error = OpenError::NetworkFileSystem { path: "/mnt/locks".into(), kind: "NFS" }.to_string();
        assert!(error.contains("/mnt/locks") && error.contains("NFS") && error.contains("disk of this host"), "{error}");
    }
}
