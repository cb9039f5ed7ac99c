"""The eleven training steps and the two validation steps, one implementation for training, preview and tests.

Every step takes a PIL image, an image tensor (1, H, W) or a batch (N, 1, H, W), with independent draws per image of a
batch, on the CPU or a GPU. Tensors are uint8 in [0, 255] or float in [0, 1]. Given a generator, a step is
deterministic. Neighbouring geometry steps are composed into one homography and applied with one interpolation, which
blurs a 48x48 face less than one interpolation per step.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FILL = 128 / 255
"""Grey level, in [0, 1], of what a geometry step pulls in from outside the picture."""

Params = dict[str, Tensor]
"""What a step has drawn: parameter name -> (N,) or (N, ...) tensor, one entry per image."""

ImageLike = TypeVar("ImageLike", Image.Image, Tensor)


class Step:
    """One step: `draw` chooses parameters per image, `apply` changes a float batch (N, 1, H, W) accordingly."""

    random = True

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        """Parameters for `count` images at `strength` in (0, 1]."""
        return {}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Float batch (N, 1, H, W) and its parameters to a float batch of the same shape."""
        raise NotImplementedError

    def __call__(
        self, image: ImageLike, strength: float = 1.0, generator: torch.Generator | None = None
    ) -> ImageLike | Tensor:
        """Apply this step alone, with fresh draws; a picture of 8 bits stays one of 8 bits.

        Args:
            image: PIL image (read as grey), or tensor (1, H, W) or (N, 1, H, W), uint8 or float in [0, 1].
            strength: 0 (identity) to 1 (the full range of the step).
            generator: source of the draws; by default torch's global one.

        Raises:
            ValueError: for another shape, dtype or strength.
        """
        _check_strength(strength)
        batch = _to_batch(image)
        if self.random and strength == 0:
            return image
        batch = self.apply(batch, self.draw(len(batch), strength, generator, batch.device))
        if isinstance(image, Image.Image):
            return Image.fromarray(_to_uint8(batch)[0, 0].cpu().numpy())
        return (_to_uint8(batch) if image.dtype == torch.uint8 else batch).view(image.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in vars(self).items())})"


class GeometricStep(Step):
    """A step that only moves pixels: output position -> input position by a homography."""

    def matrix(self, params: Params) -> Tensor:
        """Homographies (N, 3, 3) from output to input positions; see `warp` for the coordinates."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return warp(images, self.matrix(params))


class RandomHorizontalFlip(GeometricStep):
    """Mirror left and right with probability `p`, at any strength above 0 (a mirrored face is as good as the face)."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        return {"flip": _uniform(count, 0, 1, generator, device) < self.p}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        # Alone, it needs no interpolation and moves pixels exactly.
        return torch.where(params["flip"].view(-1, 1, 1, 1), images.flip(-1), images)

    def matrix(self, params: Params) -> Tensor:
        one = torch.ones_like(params["flip"], dtype=torch.float32)
        return _matrix(torch.where(params["flip"], -one, one), 0, 0, 0, 1, 0)


class RandomRotation(GeometricStep):
    """Turn about the centre by up to `degrees` either way (positive: counter-clockwise)."""

    def __init__(self, degrees: float = 20.0) -> None:
        self.degrees = degrees

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        return {"degrees": _uniform(count, -self.degrees, self.degrees, generator, device) * strength}

    def matrix(self, params: Params) -> Tensor:
        angle = torch.deg2rad(params["degrees"])
        cos, sin = torch.cos(angle), torch.sin(angle)
        return _matrix(cos, -sin, 0, sin, cos, 0)


class RandomAffine(GeometricStep):
    """Shift by up to `translate` of the side, scale by a factor from `scale`, shear by up to `shear` degrees."""

    def __init__(self, translate: float = 0.1, scale: tuple[float, float] = (0.9, 1.1), shear: float = 10.0) -> None:
        self.translate = translate
        self.scale = scale
        self.shear = shear

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        shift = 2 * self.translate  # positions run over two units from side to side
        return {
            "shift_x": _uniform(count, -shift, shift, generator, device) * strength,
            "shift_y": _uniform(count, -shift, shift, generator, device) * strength,
            "scale": 1 + (_uniform(count, *self.scale, generator, device) - 1) * strength,
            "shear": _uniform(count, -self.shear, self.shear, generator, device) * strength,
        }

    def matrix(self, params: Params) -> Tensor:
        # The inverse of "shear, scale, then shift", since it runs from output to input.
        inverse, shear = 1 / params["scale"], torch.tan(torch.deg2rad(params["shear"]))
        dx, dy = params["shift_x"], params["shift_y"]
        return _matrix(inverse, inverse * shear, -inverse * (dx + shear * dy), 0, inverse, -inverse * dy)


class RandomPerspectiveSmall(GeometricStep):
    """Move each corner by up to `distortion` of the side, in both directions independently."""

    def __init__(self, distortion: float = 0.08) -> None:
        self.distortion = distortion

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        reach = 2 * self.distortion * strength
        return {"corners": _uniform(count * 8, -reach, reach, generator, device).view(count, 4, 2)}

    def matrix(self, params: Params) -> Tensor:
        """Unit square to quadrilateral in closed form (Heckbert 1989, Fundamentals of Texture Mapping, 2.2.3)."""
        square = params["corners"].new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (
            corner.unbind(-1) for corner in (square + params["corners"]).unbind(1)
        )
        dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
        dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
        det = dx1 * dy2 - dx2 * dy1
        g, h = (dx3 * dy2 - dx2 * dy3) / det, (dx1 * dy3 - dx3 * dy1) / det
        unit_to_quad = _matrix(x1 - x0 + g * x1, x3 - x0 + h * x3, x0, y1 - y0 + g * y1, y3 - y0 + h * y3, y0, g, h)
        return unit_to_quad @ unit_to_quad.new_tensor([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])


class _FactorStep(Step):
    """A step that moves the picture away from or towards a degenerate one by a factor, as PIL's ImageEnhance does."""

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        return {"factor": 1 + (_uniform(count, self.low, self.high, generator, device) - 1) * strength}

    def degenerate(self, images: Tensor) -> Tensor:
        """What factor 0 gives, broadcastable to (N, 1, H, W)."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Params) -> Tensor:
        base = self.degenerate(images)
        return (base + params["factor"].view(-1, 1, 1, 1) * (images - base)).clamp(0, 1)


class RandomContrast(_FactorStep):
    """Spread or squeeze the grey levels about the picture's mean."""

    def __init__(self, low: float = 0.7, high: float = 1.4) -> None:
        super().__init__(low, high)

    def degenerate(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3), keepdim=True)


class RandomBrightness(_FactorStep):
    """Multiply the grey levels."""

    def __init__(self, low: float = 0.8, high: float = 1.3) -> None:
        super().__init__(low, high)

    def degenerate(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images)


class RandomSharpness(_FactorStep):
    """Blur (factor below 1) or sharpen (above 1) against PIL's SMOOTH filter; the outermost pixels stay."""

    def __init__(self, low: float = 0.6, high: float = 2.0) -> None:
        super().__init__(low, high)

    def degenerate(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 3:
            return images
        # 1 everywhere and 5 in the middle, over 13: the sum of nine shifts beats a convolution with one channel.
        inner = (9 * F.avg_pool2d(images, 3, stride=1) + 4 * images[..., 1:-1, 1:-1]) / 13
        smooth = images.clone()
        smooth[..., 1:-1, 1:-1] = inner
        return smooth


class AdaptiveHistogramEqualization(Step):
    """Contrast-limited adaptive histogram equalisation (CLAHE), with probability `p` times the strength.

    Zuiderveld 1994 (Graphics Gems IV), in OpenCV's arithmetic (`cv2.createCLAHE`), for a whole batch at once.
    """

    def __init__(self, clip_limit: float = 2.0, tiles: int = 4, p: float = 1.0) -> None:
        self.clip_limit = clip_limit
        self.tiles = tiles
        self.p = p

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        return {"equalize": _uniform(count, 0, 1, generator, device) < self.p * strength}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        chosen = params["equalize"].nonzero().squeeze(1)
        if len(chosen) == 0:
            return images
        return images.index_copy(0, chosen, self._equalize(images[chosen]))

    def _equalize(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        tiles = self.tiles
        levels = _to_uint8(images).long()
        # Like OpenCV, mirror (without repeating the edge) until the tiles fit.
        if height % tiles or width % tiles:  # then both sides grow, as OpenCV does it
            down, right = tiles - height % tiles, tiles - width % tiles
            rows = _reflect(height, height + down, images.device)
            columns = _reflect(width, width + right, images.device)
            padded = levels[:, :, rows][..., columns]
        else:
            padded = levels
        tile_height, tile_width = padded.shape[2] // tiles, padded.shape[3] // tiles
        area = tile_height * tile_width
        pixels = padded.view(count, tiles, tile_height, tiles, tile_width).transpose(2, 3).reshape(-1, area)
        histogram = torch.zeros(len(pixels), 256, dtype=torch.long, device=images.device)
        histogram.scatter_add_(1, pixels, torch.ones_like(pixels))

        limit = max(int(self.clip_limit * area / 256), 1)
        excess = (histogram - limit).clamp(min=0).sum(1, keepdim=True)
        histogram = histogram.clamp(max=limit) + excess // 256
        # What does not divide evenly goes to every k-th level, one each.
        residual = excess % 256
        stride = (256 // residual.clamp(min=1)).clamp(min=1)
        level = torch.arange(256, device=images.device)
        histogram += (level % stride == 0) & (level // stride < residual)
        # float32 like OpenCV, whose rounding of halves depends on it.
        scale = torch.tensor(255 / area, dtype=torch.float32, device=images.device)
        lookup = (histogram.cumsum(1).float() * scale).round().clamp(max=255).view(count, tiles * tiles * 256)

        # Each pixel blends the look-up tables of the four nearest tile centres.
        (top, bottom, down_share), (left, right_, right_share) = (
            _neighbours(size, tile, tiles, images.device) for size, tile in ((height, tile_height), (width, tile_width))
        )

        def look_up(row: Tensor, column: Tensor) -> Tensor:
            index = (row[:, None] * tiles + column) * 256 + levels
            return lookup.gather(1, index.view(count, -1)).view_as(images)

        upper = look_up(top, left) * (1 - right_share) + look_up(top, right_) * right_share
        lower = look_up(bottom, left) * (1 - right_share) + look_up(bottom, right_) * right_share
        return (upper * (1 - down_share[:, None]) + lower * down_share[:, None]).round() / 255


class ToTensor(Step):
    """8-bit grey levels to float in [0, 1]; floats stay as they are."""

    random = False

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return images

    def __call__(self, image: ImageLike, strength: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """PIL image, (1, H, W) or (N, 1, H, W) to a float tensor in [0, 1] of shape (1, H, W) or (N, 1, H, W)."""
        return _shaped_like(_to_batch(image), image)


class _FloatStep(Step):
    """A step on float tensors, whose results may leave [0, 1]."""

    def __call__(self, image: Tensor, strength: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Float tensor (1, H, W) or (N, 1, H, W) to the same shape. Raises ValueError for 8-bit pictures."""
        _check_strength(strength)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise ValueError(f"{type(self).__name__} was given 8-bit pixels; give a float tensor (ToTensor makes one).")
        batch = _to_batch(image)
        if self.random and strength == 0:
            return image
        return self.apply(batch, self.draw(len(batch), strength, generator, batch.device)).view(image.shape)


class Normalize(_FloatStep):
    """(x - mean) / std; with .5 and .5, [0, 1] becomes [-1, 1]."""

    random = False

    def __init__(self, mean: float = 0.5, std: float = 0.5) -> None:
        self.mean = mean
        self.std = std

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return (images - self.mean) / self.std


class GrayscaleNoise(_FloatStep):
    """Add Gaussian noise whose standard deviation is drawn from 0 to `std`, in units of the normalised picture."""

    def __init__(self, std: float = 0.05) -> None:
        self.std = std

    def draw(self, count: int, strength: float, generator: torch.Generator | None, device: torch.device) -> Params:
        # One seed for the whole batch: small enough to show, and the noise follows from it.
        std = _uniform(count, 0, self.std, generator, device) * strength
        seed = torch.randint(2**31, (1,), generator=generator, device=generator.device if generator else "cpu")
        return {"std": std, "seed": seed}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        generator = torch.Generator(images.device).manual_seed(int(params["seed"]))
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return images + noise * params["std"].view(-1, 1, 1, 1)


class Pipeline:
    """Steps in a row. `trace` shows the picture after each step; its last picture is what a call returns."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)

    def __call__(
        self, image: Image.Image | Tensor, strength: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """PIL image, (1, H, W) or (N, 1, H, W) to a float tensor (1, H, W) or (N, 1, H, W).

        Args and errors as for a single `Step`. With strength 0 only the validation steps are left.
        """
        batch, matrix = _to_batch(image), None
        for state in self._run(batch, strength, generator):
            _, _, batch, matrix = state
        return _shaped_like(batch if matrix is None else warp(batch, matrix), image)

    def trace(
        self,
        image: Image.Image | Tensor,
        strength: float = 1.0,
        generator: torch.Generator | None = None,
        off: Collection[Step] = (),
    ) -> list[tuple[Step, Params, Tensor]]:
        """Each step with what it drew (nothing at strength 0 or in `off`) and the float picture after it.

        A step in `off` changes nothing, yet uses up its draws, so that those of the others stay the same.
        """
        return [
            (step, params, _shaped_like(batch if matrix is None else warp(batch, matrix), image))
            for step, params, batch, matrix in self._run(_to_batch(image), strength, generator, off)
        ]

    def _run(
        self, batch: Tensor, strength: float, generator: torch.Generator | None, off: Collection[Step] = ()
    ) -> Iterator[tuple[Step, Params, Tensor, Tensor | None]]:
        """Yield, after each step, what it drew, the batch, and the homography still to be applied to it."""
        _check_strength(strength)
        matrix: Tensor | None = None
        for step in self.steps:
            if step.random and strength == 0:
                yield step, {}, batch, matrix
                continue
            # A homography's few numbers are worked out where they are drawn: on a GPU, they were sixty launches.
            device = generator.device if generator and isinstance(step, GeometricStep) else batch.device
            params = step.draw(len(batch), strength, generator, device)
            if step in off:
                yield step, {}, batch, matrix
                continue
            if isinstance(step, GeometricStep):
                # The picture after steps 1 and 2 at p is the input at M1 M2 p.
                matrix = step.matrix(params) if matrix is None else matrix @ step.matrix(params)
            else:
                if matrix is not None:
                    batch, matrix = warp(batch, matrix), None
                batch = step.apply(batch, params)
            yield step, params, batch, matrix

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(repr, self.steps))})"


def get_enhanced_transforms_grayscale_48(training: bool, advanced_augmentation: bool = True) -> Pipeline:
    """The eleven training steps, or ToTensor and Normalize for validation.

    Without `advanced_augmentation`, training keeps the flip, the rotation and the affine step only. Within the
    pipeline at most 30% of the faces are equalised (at strength 1), since those of validation are not, and the noise
    reaches 38 grey levels, since that of a dim camera does.
    """
    if not training:
        return Pipeline([ToTensor(), Normalize()])
    basic = [RandomHorizontalFlip(), RandomRotation(), RandomAffine()]
    if not advanced_augmentation:
        return Pipeline([*basic, ToTensor(), Normalize()])
    return Pipeline(
        [
            *basic,
            RandomPerspectiveSmall(),
            RandomContrast(),
            RandomBrightness(),
            RandomSharpness(),
            AdaptiveHistogramEqualization(p=0.3),
            ToTensor(),
            Normalize(),
            GrayscaleNoise(std=0.3),
        ]
    )


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Resample with bilinear interpolation; outside the picture is `FILL`.

    Args:
        images: float (N, 1, H, W) in [0, 1].
        matrix: (N, 3, 3), from output to input positions; the origin is the centre of the picture, x runs to the
            right, y downwards, and the longer side goes from -1 to 1.

    Returns:
        Float (N, 1, H, W) in [0, 1].
    """
    count, _, height, width = images.shape
    side = max(height, width)
    x = (torch.arange(width, device=images.device) + 0.5 - width / 2) * (2 / side)
    y = (torch.arange(height, device=images.device) + 0.5 - height / 2) * (2 / side)
    points = torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones(height * width, device=x.device)])
    # Autocast would round positions to bfloat16.
    with torch.autocast(images.device.type, enabled=False):
        points = matrix.to(images.device) @ points
    scale = points.new_tensor([[side / width], [side / height]])
    grid = (points[:, :2] / points[:, 2:] * scale).transpose(1, 2).view(count, height, width, 2)
    return F.grid_sample(images - FILL, grid, padding_mode="zeros", align_corners=False) + FILL


def _uniform(count: int, low: float, high: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    # Drawn where the generator lives, so that a CPU generator draws the same on every device.
    source = generator.device if generator else device
    drawn = low + (high - low) * torch.rand(count, generator=generator, device=source)
    # Only the way back from a GPU would have to be waited for.
    return drawn.to(device, non_blocking=source.type == "cpu")


def _matrix(*entries: Tensor | float) -> Tensor:
    """Six or eight entries in row order, numbers or (N,), to matrices (N, 3, 3); the last row is 0 0 1 or ends in 1."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    rows = (*entries, *(0, 0, 1)[len(entries) - 6 :])
    return torch.stack([torch.as_tensor(e, device=like.device).expand_as(like) for e in rows], dim=1).view(-1, 3, 3)


def _reflect(size: int, padded: int, device: torch.device) -> Tensor:
    """Indices 0 .. padded-1 into `size` pixels, mirrored at the far edge without repeating it."""
    index = torch.arange(padded, device=device)
    return torch.where(index < size, index, (2 * size - 2 - index).clamp(min=0))


def _neighbours(size: int, tile: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `size` pixels: the tile centre before it, the one after it, and the share of the latter."""
    position = torch.arange(size, device=device) / tile - 0.5
    before = position.floor()
    share = position - before
    return before.long().clamp(0), (before.long() + 1).clamp(max=tiles - 1), share


def _to_batch(image: Image.Image | Tensor) -> Tensor:
    """Any accepted picture as a float batch (N, 1, H, W) in [0, 1]."""
    if isinstance(image, Image.Image):
        image = torch.from_numpy(np.array(image.convert("L")))[None]
    if not isinstance(image, Tensor):
        raise ValueError(f"A step was given {type(image).__name__}; give a PIL image or a tensor.")
    if image.ndim not in (3, 4) or image.shape[-3] != 1 or 0 in image.shape[-2:]:
        raise ValueError(f"A step was given shape {tuple(image.shape)}; give (1, H, W) or (N, 1, H, W).")
    if image.dtype == torch.uint8:
        image = image.float() / 255
    elif not image.is_floating_point():
        raise ValueError(f"A step was given {image.dtype}; give uint8 in [0, 255] or float in [0, 1].")
    return image.view(-1, *image.shape[-3:]).float()


def _shaped_like(batch: Tensor, image: Image.Image | Tensor) -> Tensor:
    return batch if isinstance(image, Tensor) and image.ndim == 4 else batch[0]


def _to_uint8(batch: Tensor) -> Tensor:
    return (batch * 255).round().clamp(0, 255).to(torch.uint8)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:  # so NaN is refused, too
        raise ValueError(f"strength is {strength!r}; give a number from 0 (identity) to 1 (full range).")
